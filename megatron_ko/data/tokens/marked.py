"""Indexed tokens with marks: what is trained on each token of a document."""

from pathlib import Path

import numpy as np

from megatron_ko.data.tokens.identity import ChatRows
from megatron_ko.data.tokens.indexed import IndexedReader, bin_path
from megatron_ko.data.tokens.manifest import check_shard, marks_path, read_index_manifest
from megatron_ko.errors import DataError


class MarkedReader:
    """Reads documents with their marks.

    A row is what is trained as a whole: a conversation, or both answers of a pair, which lie one after the other.

    Args:
        prefix: of an indexed file that ``data chat`` or ``data preference`` wrote.

    Attributes:
        manifest, chat: what it holds, and how it was made.
        reader: of the tokens.

    Raises:
        DataError: it is no such file, or damaged.
    """

    def __init__(self, prefix: Path) -> None:
        self.manifest = read_index_manifest(prefix)
        chat = self.manifest.chat
        if chat is None:
            raise DataError(
                f"{prefix} holds plain text: every token of it is trained",
                expected="what data chat or data preference wrote",
                remedy=f"megatron-ko data inspect {prefix}",
            )
        self.chat: ChatRows = chat
        self.reader: IndexedReader = check_shard(prefix, self.manifest)
        self._tokens = np.memmap(bin_path(prefix), mode="r", dtype=self.reader.dtype)
        self._marks = np.memmap(marks_path(prefix), mode="r", dtype=np.uint8)
        self._starts = np.concatenate(([0], np.cumsum(self.reader.lengths, dtype=np.int64)))

    def ids(self, document: int) -> np.ndarray:
        """Tokens [t] of a document."""
        return np.asarray(self._tokens[self._starts[document] : self._starts[document + 1]])

    def marks(self, document: int) -> np.ndarray:
        """Marks [t] of a document."""
        return np.asarray(self._marks[self._starts[document] : self._starts[document + 1]])

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.reader) // self.chat.documents

    def documents(self, row: int) -> range:
        """The documents of a row."""
        return range(row * self.chat.documents, (row + 1) * self.chat.documents)

    def positions(self) -> np.ndarray:
        """[n] what each row takes in a training sample: every token but the last of a document predicts the next."""
        lengths = self.reader.lengths.astype(np.int64) - 1
        taken: np.ndarray = lengths.reshape(-1, self.chat.documents).sum(1)
        return taken
