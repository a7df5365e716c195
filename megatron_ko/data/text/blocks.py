"""Files to blocks: one process finds them, another one parses and encodes them.

Of a plain file of lines, or a row group of parquet, only the place in the file is passed on: the worker reads it. Files
that must be read from their beginning (compressed files, csv, Arrow) are passed on as blocks.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from megatron_ko.data.text.delimited import delimited_blocks
from megatron_ko.data.text.formats import Encoding, InputFormat, TextUnit
from megatron_ko.data.text.inputs import check_inputs, format_of
from megatron_ko.data.text.records import (
    BLOCK_BYTES,
    BYTE_ORDER_MARK,
    LARGEST_RECORD,
    Block,
    BlockFormat,
    Reading,
    Rejected,
    check_record,
)
from megatron_ko.data.text.streams import (
    COMPRESSED,
    STDIN,
    Readable,
    Stream,
    check_beginning,
    file_encoding,
    open_stream,
)
from megatron_ko.data.text.tables import RowGroup, arrow_blocks, parquet_row_groups, row_group_blocks
from megatron_ko.data.text.wet import wet_blocks
from megatron_ko.errors import DataError

__all__ = [
    "BLOCK_BYTES", "Block", "FileSpan", "LineSpan", "Reading", "Rejected", "RowGroup", "Span", "check_inputs",
    "is_divisible", "open_span", "read_blocks", "read_spans",
]  # fmt: skip


# What these hold is UTF-8 by their definition.
ALWAYS_UTF8 = (InputFormat.parquet, InputFormat.arrow, InputFormat.wet)


@dataclass(frozen=True)
class LineSpan:
    """Whole lines of a plain file: bytes ``offset`` to ``read``; the first line has the number ``first`` (from 1)."""

    source: str
    format: BlockFormat
    first: int
    offset: int
    read: int


@dataclass(frozen=True)
class FileSpan:
    """A whole file of ``read`` bytes that is read from its beginning to its end."""

    source: str
    reading: Reading
    read: int


Span = Block | LineSpan | RowGroup | FileSpan


def read_blocks(
    path: Path,
    *,
    key: str = "text",
    text_unit: TextUnit = TextUnit.line,
    keep_fields: bool = False,
    encoding: Encoding = Encoding.utf_8,
) -> Iterator[Block]:
    """Stream the blocks of one file.

    Args:
        path: in any format in ``inputs.SUFFIXES``.
        key: column of a table.
        text_unit: "line" for one document a line of a .txt file, "file" for one document a file.
        keep_fields: read the other columns of a table too.
        encoding: of text.

    Raises:
        DataError: the file is damaged, or one record is larger than 256 MiB.
    """
    reading = Reading((path,), key, text_unit=text_unit, keep_fields=keep_fields, encoding=encoding)
    for span in read_spans(path, reading, BLOCK_BYTES):
        yield from open_span(span)


def read_spans(path: Path, reading: Reading, limit: int, *, whole: bool = False) -> Iterator[Span]:
    """Stream the pieces of one file.

    Args:
        path: in any format.
        reading: how to read it.
        limit: about how many bytes a piece has that the worker reads by itself.
        whole: pass on a file that must be read from its beginning as one piece, not as blocks.

    Raises:
        DataError: the file is damaged, or one record is larger than 256 MiB.
    """
    file_format = format_of(path, reading.format)
    if file_format in ALWAYS_UTF8:
        reading = replace(reading, encoding=Encoding.utf_8)
    else:
        reading = replace(reading, encoding=file_encoding(path, reading.encoding))
    if file_format == "parquet":
        yield from parquet_row_groups(path, reading)
    elif is_divisible(path, reading):
        yield from _line_spans(path, file_format, reading, limit)
    elif whole:
        yield FileSpan(str(path), replace(reading, inputs=(path,)), path.stat().st_size)
    else:
        yield from _file_blocks(path, reading)


def is_divisible(path: Path, reading: Reading) -> bool:
    """Whether a worker can begin to read in the middle of a file."""
    file_format = format_of(path, reading.format)
    plain = path != STDIN and path.suffix.lower() not in COMPRESSED and reading.encoding is Encoding.utf_8
    return file_format == "parquet" or (file_format in ("txt", "jsonl") and plain)


def open_span(span: Span) -> Iterator[Block]:
    """The blocks of a span, read from its file.

    Raises:
        DataError: the file is damaged, or one record is larger than 256 MiB.
    """
    if isinstance(span, RowGroup):
        yield from row_group_blocks(span)
    elif isinstance(span, LineSpan):
        with Path(span.source).open("rb") as raw:
            raw.seek(span.offset)
            if span.format == "file":
                check_record(span.source, 1, span.read - span.offset)
                yield Block(span.source, "file", 1, raw.read(), span.read)
            else:
                part = _Part(raw, span.read - span.offset)
                for block in _line_blocks(span.source, span.format, part, span.first):
                    yield Block(block.source, block.format, block.first, block.payload, span.offset + block.read)
    elif isinstance(span, FileSpan):
        yield from _file_blocks(Path(span.source), span.reading)
    else:
        yield span


def _file_blocks(path: Path, reading: Reading) -> Iterator[Block]:
    file_format = format_of(path, reading.format)
    if file_format == "arrow":
        yield from arrow_blocks(path, reading)
    else:
        with open_stream(path, reading.encoding) as stream:
            for block in _stream_blocks(stream, file_format, reading):
                yield block if reading.encoding is Encoding.utf_8 else replace(block, encoding=reading.encoding)


def _stream_blocks(stream: Stream, file_format: InputFormat, reading: Reading) -> Iterator[Block]:
    if file_format in ("csv", "tsv"):
        yield from delimited_blocks(stream, file_format, reading)
    elif file_format == "wet":
        yield from wet_blocks(stream)
    elif file_format == "txt" and reading.text_unit == "file":
        payload = stream.read(LARGEST_RECORD + 1)
        check_record(stream.path, 1, len(payload))
        check_beginning(stream.path, payload[:BLOCK_BYTES])
        yield Block(str(stream.path), "file", 1, payload.removeprefix(BYTE_ORDER_MARK), stream.consumed())
    else:
        format: BlockFormat = "txt" if file_format == "txt" else "jsonl"
        for block in _line_blocks(str(stream.path), format, _WithoutMark(stream), 1):
            if block.first == 1:
                _refuse_whole(stream.path, format, block.payload)
            yield Block(block.source, block.format, block.first, block.payload, stream.consumed())


def _line_blocks(source: str, format: BlockFormat, stream: Readable, first: int) -> Iterator[Block]:
    """Whole lines; ``read`` of a block counts the bytes of ``stream``."""
    rest, read = b"", 0
    while chunk := stream.read(BLOCK_BYTES):
        read += len(chunk)
        end = chunk.rfind(b"\n") + 1
        if not end:
            rest += chunk
            check_record(source, first, len(rest))
            continue
        payload, rest = rest + chunk[:end], chunk[end:]
        yield Block(source, format, first, payload, read)
        first += payload.count(b"\n")
    if rest:
        yield Block(source, format, first, rest, read)


def _line_spans(path: Path, file_format: InputFormat, reading: Reading, limit: int) -> Iterator[LineSpan]:
    format: BlockFormat = "txt" if file_format == "txt" else "jsonl"
    size = path.stat().st_size
    with path.open("rb") as stream:
        beginning = stream.read(BLOCK_BYTES)
        start = position = len(BYTE_ORDER_MARK) if beginning.startswith(BYTE_ORDER_MARK) else 0
        _refuse_whole(path, format, beginning[start:])
        if format == "txt" and reading.text_unit == "file":
            yield LineSpan(str(path), "file", 1, start, size)
            return
        stream.seek(start)
        first, lines = 1, 0
        while chunk := stream.read(min(BLOCK_BYTES, limit)):
            end = chunk.rfind(b"\n") + 1
            border, position = position + end, position + len(chunk)
            if end and border - start >= limit:
                yield LineSpan(str(path), format, first, start, border)
                first, start = first + lines + chunk.count(b"\n", 0, end), border
                lines = 0
            else:
                lines += chunk.count(b"\n")
        if position > start:
            yield LineSpan(str(path), format, first, start, position)


def _refuse_whole(path: Path, format: BlockFormat, beginning: bytes) -> None:
    """Refuse a file in another encoding, or a .json file that is one array, as a whole and not line by line."""
    check_beginning(path, beginning)
    if format == "jsonl" and _begins_array(beginning):
        raise DataError(
            f"{path} is one JSON array",
            got="one '[' around all objects",
            expected="JSON lines: one object a line",
            remedy=f"jq -c '.[]' {path} > lines.jsonl",
        )


def _begins_array(beginning: bytes) -> bool:
    """Whether the file is one array of objects: its first line opens one that does not end there, or nothing follows.

    An array on one line, with other lines after it, is only a bad line.
    """
    first, _, rest = beginning.lstrip().partition(b"\n")
    opens = first.startswith(b"[") and first[1:].lstrip()[:1] in (b"", b"{")
    return opens and (not rest.strip() or not first.rstrip().endswith(b"]"))


class _Part:
    """The next ``size`` bytes of a file."""

    def __init__(self, raw: Readable, size: int) -> None:
        self._raw, self._left = raw, size

    def read(self, size: int, /) -> bytes:
        """Up to ``size`` bytes; fewer only at the end."""
        content = self._raw.read(min(size, self._left))
        self._left -= len(content)
        return content


class _WithoutMark:
    """A stream without the byte order mark at its beginning."""

    def __init__(self, stream: Readable) -> None:
        self._stream, self._fresh = stream, True

    def read(self, size: int, /) -> bytes:
        """Up to ``size`` bytes; fewer only at the end."""
        content = self._stream.read(size)
        if self._fresh:
            content, self._fresh = content.removeprefix(BYTE_ORDER_MARK), False
        return content
