"""csv (RFC 4180), and tsv, where quotes have no meaning; the first line names the columns.

Python's own csv reader is used because it can go on after a malformed record. A quote that is never closed would
swallow the rest of the file: that is an error, not a record.
"""

import csv
from collections.abc import Iterator
from dataclasses import dataclass

from megatron_ko.data.text.formats import InputFormat
from megatron_ko.data.text.records import (
    BLOCK_BYTES,
    BYTE_ORDER_MARK,
    LARGEST_RECORD,
    POSITION,
    Block,
    Reading,
    Rejected,
    check_record,
)
from megatron_ko.data.text.streams import Stream, check_beginning
from megatron_ko.data.text.tables import check_columns, damaged, serialized
from megatron_ko.errors import DataError

_EXCERPT = 200
_MOST_REJECTED = 1024


@dataclass(frozen=True)
class _Row:
    """A record: the line on which it begins, its fields, and what is wrong with it (None: nothing)."""

    line: int
    values: list[str]
    problem: str | None = None


def delimited_blocks(stream: Stream, file_format: InputFormat, reading: Reading) -> Iterator[Block]:
    """The rows of a csv or tsv file; positions are line numbers.

    Raises:
        DataError: no such column, a quote that is never closed, or a record larger than 256 MiB.
    """
    rows = _tsv_rows(stream) if file_format == "tsv" else _csv_rows(stream)
    header = next(rows, None)
    if header is None:
        return
    named = ",".join(header.values).encode("utf-8", "backslashreplace").decode()
    if header.problem or named != ",".join(header.values) or len(set(header.values)) < len(header.values):
        raise damaged(stream.path, header.problem or f"columns {named}", "name each column once, in UTF-8")
    check_columns(stream.path, header.values, reading.keys)
    builder = _BlockBuilder(stream, header.values if reading.keep_fields else list(reading.keys))
    wanted = [header.values.index(name) for name in builder.names]
    for row in rows:
        problem = row.problem
        if problem is None and len(row.values) != len(header.values):
            problem = f"{len(row.values)} fields instead of {len(header.values)}"
        if problem is None:
            builder.add(row.line, [row.values[index] for index in wanted])
        else:
            builder.reject(row, f"malformed {file_format}: {problem}")
        if builder.full():
            yield builder.block()
    if builder.records():
        yield builder.block()


class _BlockBuilder:
    """Rows that are collected into a block."""

    def __init__(self, stream: Stream, names: list[str]) -> None:
        self._stream, self.names = stream, names
        self._clear()

    def _clear(self) -> None:
        self._columns: list[list[bytes]] = [[] for _ in self.names]
        self._positions: list[int] = []
        self._rejected: list[Rejected] = []
        self._size = 0

    def add(self, line: int, values: list[str]) -> None:
        self._positions.append(line)
        for column, value in zip(self._columns, values, strict=True):
            column.append(value.encode("utf-8", "surrogateescape"))
            self._size += len(value) + 8

    def reject(self, row: _Row, reason: str) -> None:
        excerpt = ",".join(row.values)[:_EXCERPT].encode("utf-8", "surrogateescape")
        shown = excerpt.decode("utf-8", "backslashreplace")
        self._rejected.append(Rejected(str(self._stream.path), row.line, reason, shown))

    def records(self) -> int:
        return len(self._positions) + len(self._rejected)

    def full(self) -> bool:
        return self._size >= BLOCK_BYTES // 2 or len(self._rejected) >= _MOST_REJECTED

    def block(self) -> Block:
        import pyarrow

        arrays = [pyarrow.array(column, type=pyarrow.large_binary()) for column in self._columns]
        arrays.append(pyarrow.array(self._positions, type=pyarrow.int64()))
        batch = pyarrow.RecordBatch.from_arrays(arrays, [*self.names, POSITION])
        path, consumed = self._stream.path, self._stream.consumed()
        result = Block(str(path), "table", 0, serialized(batch), consumed, tuple(self._rejected))
        self._clear()
        return result


def _tsv_rows(stream: Stream) -> Iterator[_Row]:
    for number, line in enumerate(_lines(stream), 1):
        text = line.removesuffix("\n").removesuffix("\r")
        if text.strip():
            yield _Row(number, text.split("\t"))


def _csv_rows(stream: Stream) -> Iterator[_Row]:
    csv.field_size_limit(LARGEST_RECORD)
    held: list[str] = []

    def lines() -> Iterator[str]:
        for line in _lines(stream):
            held.append(line)
            yield line

    reader = csv.reader(lines(), strict=True)
    while True:
        line = reader.line_num + 1
        held.clear()
        try:
            values = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            if "unexpected end of data" in str(error):
                raise DataError(
                    f"a quote in {stream.path} is never closed",
                    got=f"it opens in the record at line {line:,}",
                    expected='fields as "..." with "" for a quote inside',
                    remedy="repair that line, or give a tab-separated file as .tsv",
                ) from error
            yield _Row(line, ["".join(held).rstrip("\r\n")], str(error))
            continue
        if values:
            yield _Row(line, values)


def _lines(stream: Stream) -> Iterator[str]:
    """Lines with their ends. Bytes that are not UTF-8 become surrogates, and the same bytes again when written."""
    rest, fresh = b"", True
    while chunk := stream.read(BLOCK_BYTES):
        if fresh:
            check_beginning(stream.path, chunk)
            chunk, fresh = chunk.removeprefix(BYTE_ORDER_MARK), False
        *lines, rest = (rest + chunk).split(b"\n")
        check_record(stream.path, 0, len(rest))
        for line in lines:
            yield line.decode("utf-8", "surrogateescape") + "\n"
    if rest:
        yield rest.decode("utf-8", "surrogateescape")
