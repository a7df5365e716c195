"""What readers pass to parsers: blocks of whole records, and records that could not even be read."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from megatron_ko.data.text.formats import Encoding, InputFormat, TextUnit
from megatron_ko.errors import DataError

BLOCK_BYTES = 1 << 20
# One record must fit into memory several times over. A file without line breaks is a mistake, not a document.
LARGEST_RECORD = 256 << 20
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
# Column of a table block that numbers its rows, where they do not simply count up.
POSITION = "\0position"
# Where a table block keeps the types that its columns had before their strings became bytes.
TYPES = b"types"

BlockFormat = Literal["txt", "file", "jsonl", "wet", "table"]


@dataclass(frozen=True)
class Reading:
    """What is read, and how.

    Attributes:
        inputs: files in order; ``Path("-")`` is the standard input.
        key: text field or column.
        text_unit: a document of a .txt file is a "line" or the whole "file".
        keep_fields: read the other columns of a table too.
        whole_records: no single field is the text; give ``keep_fields``, too.
        extra_keys: further text fields, for outputs of several keys.
        format: of all inputs; None: as their suffixes say.
        chunk_bytes: size of a chunk; None: by the size of the inputs.
        encoding: of .txt, .jsonl, .csv and .tsv; the other formats are UTF-8 by definition.
    """

    inputs: tuple[Path, ...]
    key: str = "text"
    text_unit: TextUnit = TextUnit.line
    keep_fields: bool = False
    extra_keys: tuple[str, ...] = ()
    format: InputFormat | None = None
    chunk_bytes: int | None = None
    whole_records: bool = False
    encoding: Encoding = Encoding.utf_8

    @property
    def keys(self) -> tuple[str, ...]:
        """All text fields."""
        return () if self.whole_records else (self.key, *self.extra_keys)


@dataclass(frozen=True)
class Rejected:
    """A record that could not become a document: its place, the reason, and how it begins."""

    source: str
    position: int
    reason: str
    excerpt: str


@dataclass(frozen=True)
class Block:
    """Consecutive records of one source, about a megabyte of them.

    Attributes:
        source: path as the user gave it.
        format: how to parse ``payload``.
        first: number of the first record; lines and records count from 1, rows of a table from 0.
        payload: lines, the whole file (format "file"), WET records, or rows as an Arrow stream (format "table").
        read: bytes of the (compressed) file that have been read so far, for progress.
        rejected: records that could not be read.
        encoding: that the file is in; ``payload`` is in UTF-8.
    """

    source: str
    format: BlockFormat
    first: int
    payload: bytes
    read: int
    rejected: tuple[Rejected, ...] = ()
    encoding: Encoding = Encoding.utf_8


def check_record(source: object, position: int, size: int) -> None:
    """Refuse a record that would not fit into memory.

    Raises:
        DataError: larger than 256 MiB.
    """
    if size > LARGEST_RECORD:
        raise DataError(
            f"one record of {source} is too large",
            got=f"more than {LARGEST_RECORD >> 20} MiB at record {position}",
            expected="one document a line",
            remedy="split the file into lines",
        )
