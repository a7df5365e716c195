"""Rows to blocks: parquet and Arrow. A block of rows is an Arrow stream in which strings are bytes.

Strings are read as bytes, so that invalid UTF-8 spoils one record and not the whole file.
"""

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from megatron_ko.data.text.records import BLOCK_BYTES, TYPES, Block, Reading
from megatron_ko.errors import DataError

if TYPE_CHECKING:
    import pyarrow

_ROWS = 1024
# A larger row group is divided. Each share also decodes the rows before it, which is cheap compared with encoding.
_SLICE_BYTES = 128 << 20


@dataclass(frozen=True)
class RowGroup:
    """Rows of one row group of a parquet file: all of it, or a slice of a very large one.

    Attributes:
        source: path.
        group: number of the group.
        first: number of the group's first row in the file, from 0.
        start, stop: of the rows, counted in the group.
        columns: that are read, None for all.
        keys: columns of text.
        bytes: size of these rows, not compressed.
        read: bytes of the file up to their end, for progress.
    """

    source: str
    group: int
    first: int
    start: int
    stop: int
    columns: tuple[str, ...] | None
    keys: tuple[str, ...]
    bytes: int
    read: int


def parquet_row_groups(path: Path, reading: Reading) -> Iterator[RowGroup]:
    """The row groups of a file.

    Raises:
        DataError: no such column, or a damaged file.
    """
    import pyarrow
    import pyarrow.parquet as parquet

    try:
        with parquet.ParquetFile(path) as file:
            check_columns(path, file.schema_arrow.names, reading.keys)
            columns = None if reading.keep_fields else reading.keys
            first, size, rows = 0, path.stat().st_size, max(1, file.metadata.num_rows)
            for number in range(file.num_row_groups):
                group = file.metadata.row_group(number)
                slices = max(1, group.total_byte_size // _SLICE_BYTES)
                step = max(1, -(-group.num_rows // slices))
                for start in range(0, group.num_rows, step):
                    stop = min(start + step, group.num_rows)
                    held, read = group.total_byte_size // slices, size * (first + stop) // rows
                    yield RowGroup(str(path), number, first, start, stop, columns, reading.keys, held, read)
                first += group.num_rows
    except (pyarrow.ArrowException, OSError, UnicodeError) as error:
        raise damaged(path, error, "write the parquet file again") from error


def row_group_blocks(group: RowGroup) -> Iterator[Block]:
    """The rows of one group, or of a slice of it.

    Raises:
        DataError: the file is damaged.
    """
    import pyarrow
    import pyarrow.parquet as parquet

    position = 0
    try:
        # With a buffer it reads page by page; without one it holds a whole column of the group.
        with parquet.ParquetFile(group.source, buffer_size=BLOCK_BYTES, page_checksum_verification=True) as file:
            columns = list(group.columns) if group.columns is not None else None
            for batch in file.iter_batches(batch_size=_ROWS, row_groups=[group.group], columns=columns):
                first, last = max(position, group.start), min(position + batch.num_rows, group.stop)
                if first < last:
                    part = batch.slice(first - position, last - first)
                    yield _block(group.source, group.first + first, part, group.keys, group.read)
                position += batch.num_rows
                if position >= group.stop:
                    break
    except (pyarrow.ArrowException, OSError, UnicodeError) as error:
        where = f"{error}, in row group {group.group} (rows from {group.first:,})"
        raise damaged(Path(group.source), where, "write the parquet file again") from error


def arrow_blocks(path: Path, reading: Reading) -> Iterator[Block]:
    """The rows of an Arrow file or stream, such as the data files of a Hugging Face dataset.

    Raises:
        DataError: no such column, or a damaged file.
    """
    import pyarrow

    first, number = 0, 0
    try:
        with pyarrow.memory_map(str(path)) as source:
            for batch in _arrow_batches(source, path, reading):
                number += 1
                rows = max(1, batch.num_rows * BLOCK_BYTES // max(1, batch.nbytes))
                for start in range(0, batch.num_rows, rows):
                    part = batch.slice(start, rows)
                    yield _block(str(path), first, part, reading.keys, source.tell())
                    first += part.num_rows
    except (pyarrow.ArrowException, OSError, UnicodeError) as error:
        raise damaged(path, f"{error}, in record batch {number}", "save it again") from error


def _arrow_batches(source: "pyarrow.MemoryMappedFile", path: Path, reading: Reading) -> Iterator["pyarrow.RecordBatch"]:
    import pyarrow

    is_file = source.read(6) == b"ARROW1"
    source.seek(0)
    reader = pyarrow.ipc.open_file(source) if is_file else pyarrow.ipc.open_stream(source)
    check_columns(path, reader.schema.names, reading.keys)
    names = reader.schema.names if reading.keep_fields else list(reading.keys)
    batches = map(reader.get_batch, range(reader.num_record_batches)) if is_file else reader
    for batch in batches:
        # Arrow maps files without checking them: unless all offsets are validated, a damaged file crashes the process.
        for column in _strings_as_bytes(batch.select(names), reading.keys).columns:
            column.validate(full=True)
        yield batch.select(names)


def _block(source: str, first: int, batch: "pyarrow.RecordBatch", keys: Sequence[str], read: int) -> Block:
    return Block(source, "table", first, serialized(_strings_as_bytes(batch, keys)), read)


def _strings_as_bytes(batch: "pyarrow.RecordBatch", keys: Sequence[str]) -> "pyarrow.RecordBatch":
    """Strings, and dictionaries of strings, as bytes. Columns that hold binary data are left out."""
    import pyarrow
    import pyarrow.types as types

    columns, names, types_before = [], [], []
    for field in batch.schema:
        column = batch.column(field.name)
        if types.is_dictionary(column.type):
            column = column.dictionary_decode()
        if types.is_string(column.type) or types.is_string_view(column.type):
            column = column.cast(pyarrow.binary())
        elif types.is_large_string(column.type):
            column = column.cast(pyarrow.large_binary())
        elif field.name not in keys and _holds_bytes(column.type):
            continue
        columns.append(column)
        names.append(field.name)
        types_before.append(field.remove_metadata())
    metadata = {TYPES: pyarrow.schema(types_before).serialize().to_pybytes()}
    return pyarrow.RecordBatch.from_arrays(columns, names=names, metadata=metadata)


def _holds_bytes(type: "pyarrow.DataType") -> bool:
    """Whether a type is binary or has binary parts, as the pictures of a Hugging Face dataset have."""
    import pyarrow.types as types

    if types.is_binary(type) or types.is_large_binary(type) or types.is_binary_view(type):
        return True
    if types.is_fixed_size_binary(type):
        return True
    inner = type.num_fields if types.is_nested(type) else 0
    return any(_holds_bytes(type.field(index).type) for index in range(inner))


def serialized(batch: "pyarrow.RecordBatch") -> bytes:
    """A batch as the payload of a block."""
    import pyarrow

    sink = io.BytesIO()
    with pyarrow.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return sink.getvalue()


def check_columns(path: Path, names: Sequence[str], keys: Sequence[str]) -> None:
    """Refuse a file that lacks a column of text, or has two columns of one name.

    Raises:
        DataError: which columns there are.
    """
    if len(set(names)) < len(names):
        raise damaged(path, f"columns {', '.join(names)}", "name each column once")
    for key in keys:
        if key not in names:
            raise DataError(
                f"{path} has no column {key!r}",
                got=f"columns {', '.join(names)}",
                remedy="name the column of the text: --json-key COLUMN",
            )


def damaged(path: Path, error: object, remedy: str) -> DataError:
    """What to say about a file that cannot be read."""
    return DataError(f"{path} is damaged", got=str(error), remedy=remedy)
