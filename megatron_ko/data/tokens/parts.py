"""The file of one encoded chunk: for every key ids, int32 lengths (int32 text bytes, marks), then rejected records.

Rejected records are int32 numbers of the documents before each of them, and JSON lines.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypedDict

import numpy as np

from megatron_ko.data.jobs.job import Part
from megatron_ko.data.text.records import Rejected


@dataclass(frozen=True)
class Layout:
    """What all parts of a job have in common.

    Attributes:
        keys: number of outputs.
        dtype: of the ids.
        text_bytes: whether the UTF-8 bytes of each document are there.
        marks: whether each token has a mark: what is trained on it.
    """

    keys: int
    dtype: np.dtype
    text_bytes: bool
    marks: bool = False


@dataclass(frozen=True)
class ParsedKeys:
    """The records of a block in which every key holds a text.

    Attributes:
        texts: one list a key, of equal lengths.
        positions: of these records.
        rejected: the other records, in order.
        before: number of documents of the block before each rejected record.
    """

    texts: list[list[str]]
    positions: list[int]
    rejected: list[Rejected]
    before: np.ndarray


class PartCounts(TypedDict):
    """What a part holds.

    Attributes:
        documents, rejected: records that became documents, and those that did not.
        tokens, text_bytes: of each key.
        reasons: rejected records by reason.
        first_rejected: reason and place of the first one.
        runs: source and number of documents, in order.
        samples: number of a document in the part, and the hash of its text for each key.
    """

    documents: int
    rejected: int
    tokens: list[int]
    text_bytes: list[int]
    reasons: dict[str, int]
    first_rejected: str | None
    runs: list[tuple[str, int]]
    samples: list[tuple[int, list[str]]]


class EncodeStatistics(PartCounts):
    """What is recorded of an encoded chunk: its part, and the bytes of input that were read for it.

    Attributes:
        unencodable: "documents" that were changed because of characters without tokens, and how many by character.
        records: of conversations, what became of them, by name; empty for texts.
    """

    unencodable: dict[str, int]
    records: dict[str, int]
    read: int


class PartView:
    """A part, memory-mapped.

    Attributes:
        documents: in it.
        statistics: as ``encode.EncodeChunk`` returned them.
    """

    def __init__(self, part: Part[EncodeStatistics], layout: Layout) -> None:
        self.statistics = part.statistics
        self.documents = part.statistics["documents"]
        self._layout = layout
        # numpy cannot map an empty file.
        size = part.path.stat().st_size
        self._content = np.memmap(part.path, mode="r") if size else np.zeros(0, np.uint8)
        self._starts = self._sections()

    def lengths(self, key: int) -> np.ndarray:
        """Tokens [n] of each document."""
        return self._view(self._starts[key][1], self.documents, np.dtype("<i4"))

    def all_lengths(self) -> np.ndarray:
        """Tokens [n] (int64) of each document, over all keys."""
        keys = (self.lengths(key).astype(np.int64) for key in range(self._layout.keys))
        return np.sum(list(keys), axis=0)

    def ids(self, key: int, first: int, last: int) -> np.ndarray:
        """Tokens [t] of the documents from ``first`` up to ``last``."""
        start, end = (int(self.lengths(key)[:number].sum(dtype=np.int64)) for number in (first, last))
        dtype = self._layout.dtype
        return self._view(self._starts[key][0] + start * dtype.itemsize, end - start, dtype)

    def text_bytes(self, key: int, first: int, last: int) -> int:
        """UTF-8 bytes of the documents from ``first`` up to ``last``."""
        if (first, last) == (0, self.documents):
            return self.statistics["text_bytes"][key]
        sizes = self._view(self._starts[key][2], self.documents, np.dtype("<i4"))
        return int(sizes[first:last].sum(dtype=np.int64))

    def marks(self, key: int, first: int, last: int) -> np.ndarray:
        """Marks [t] of the tokens of the documents from ``first`` up to ``last``."""
        start, end = (int(self.lengths(key)[:number].sum(dtype=np.int64)) for number in (first, last))
        return self._view(self._starts[key][3] + start, end - start, np.dtype(np.uint8))

    def rejected(self, first: int, last: int) -> Iterator[bytes]:
        """Lines of the rejected records that go with the documents from ``first`` up to ``last``.

        A record goes with the document that follows it; at the end of the part, with the last document.
        """
        start = self._starts[-1][0]
        before = self._view(start, self.statistics["rejected"], np.dtype("<i4"))
        lines = self._content[start + before.nbytes :].tobytes().splitlines(keepends=True)
        beside = np.minimum(before, max(0, self.documents - 1))
        low, high = (int(np.searchsorted(beside, number)) for number in (first, max(last, first + 1)))
        yield from lines[low:high]

    def sources(self, first: int, last: int) -> Iterator[tuple[str, int]]:
        """How many of the documents from ``first`` up to ``last`` come from which source, in order."""
        start = 0
        for source, number in self.statistics["runs"]:
            inside = min(last, start + number) - max(first, start)
            if inside > 0:
                yield source, inside
            start += number

    def _sections(self) -> Sequence[tuple[int, ...]]:
        """Where ids, lengths, text bytes and marks of every key begin, and then the rejected records."""
        starts: list[tuple[int, ...]] = []
        position = 0
        for tokens in self.statistics["tokens"]:
            lengths = position + tokens * self._layout.dtype.itemsize
            text_bytes = lengths + 4 * self.documents
            marks = text_bytes + (4 * self.documents if self._layout.text_bytes else 0)
            starts.append((position, lengths, text_bytes, marks))
            position = marks + (tokens if self._layout.marks else 0)
        return [*starts, (position,)]

    def _view(self, start: int, count: int, dtype: np.dtype) -> np.ndarray:
        # An uneven number of two-byte ids leaves what follows unaligned; numpy reads it all the same.
        return np.frombuffer(self._content, dtype=dtype, count=count, offset=start) if count else np.zeros(0, dtype)
