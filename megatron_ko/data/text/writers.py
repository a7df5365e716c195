"""Documents to files: .jsonl (also .gz, .zst) and .parquet. A file is complete or does not exist."""

import gzip
import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, cast

import orjson
import zstandard

from megatron_ko.data.text.documents import Document
from megatron_ko.errors import DataError
from megatron_ko.storage.files import StagedFiles, explain_disk_errors

if TYPE_CHECKING:
    import pyarrow.parquet

SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet")
_ROWS = 4096
_ZSTD_LEVEL = 3
_GZIP_LEVEL = 6


class DocumentWriter:
    """Writes documents one by one; the file gets its name when the ``with`` block ends well. Nothing is overwritten.

    The same documents give the same bytes. Other fields of a document are written beside the text. A .parquet file has
    the columns and types of its first 4,096 documents.

    Args:
        path: new file; its suffix decides the kind.
        key: field or column of the text.

    Raises:
        DataError: unknown suffix, the file exists, a full disk, or (parquet) a field that has no column.
    """

    def __init__(self, path: Path, key: str = "text") -> None:
        check_writable_kind(path)
        self._path, self._key = path, key
        self._staged = StagedFiles([path])
        self._rows: list[dict[str, object]] = []
        self._stream: IO[bytes] | None = None
        self._table: pyarrow.parquet.ParquetWriter | None = None

    def write(self, document: Document) -> None:
        """Append one document."""
        row = {self._key: document.text, **document.fields}
        if self._stream is not None:
            self._stream.write(orjson.dumps(row, default=str) + b"\n")
            return
        self._rows.append(row)
        if len(self._rows) >= _ROWS:
            self._write_rows()

    def __enter__(self) -> "DocumentWriter":
        with explain_disk_errors(self._path):
            self._file = self._staged.open(self._path)
        if self._path.suffix != ".parquet":
            self._stream = _compressed(self._file, self._path.suffix)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with explain_disk_errors(self._path), self._staged:
            try:
                if error is None:
                    self._finish()
                    self._staged.publish()
            finally:
                # Closed here, because the garbage collector would later write the end of the table into a closed file.
                if self._table is not None:
                    with suppress(OSError):
                        self._table.close()

    def _finish(self) -> None:
        if self._stream is not None:
            if self._stream is not self._file:
                self._stream.close()
            return
        if self._rows or self._table is None:
            self._write_rows()
        assert self._table is not None
        self._table.close()

    def _write_rows(self) -> None:
        import pyarrow
        import pyarrow.parquet

        try:
            batch = self._batch()
            if self._table is None:
                self._table = pyarrow.parquet.ParquetWriter(self._file, batch.schema, compression="zstd")
            self._table.write_table(batch)
        except (pyarrow.ArrowException, OverflowError) as error:
            columns = f"columns {', '.join(self._table.schema.names)} as in" if self._table else "one type a field in"
            raise DataError(
                f"{self._path} cannot hold these documents: their fields change, or have no type in parquet",
                got=str(error),
                expected=f"{columns} the first documents",
                remedy="write .jsonl.zst instead",
            ) from error
        self._rows = []

    def _batch(self) -> "pyarrow.Table":
        import pyarrow

        if self._table is None:
            empty = pyarrow.schema([(self._key, pyarrow.string())])
            return pyarrow.Table.from_pylist(_same_keys(self._rows), schema=None if self._rows else empty)
        schema = self._table.schema
        if unknown := {name for row in self._rows for name in row} - set(schema.names):
            raise pyarrow.ArrowInvalid(f"new fields {', '.join(sorted(unknown))}")
        return pyarrow.Table.from_pylist(self._rows, schema=schema)


def merge_documents(parts: Sequence[Path], final: Path) -> None:
    """Join files of one kind, in order, by streaming: compressed streams are concatenated, parquet by row groups.

    Raises:
        DataError: ``final`` exists, a full disk, or parquet files of different columns.
    """
    check_writable_kind(final)
    with explain_disk_errors(final), StagedFiles([final]) as staged:
        stream = staged.open(final)
        if final.suffix == ".parquet":
            _merge_tables(parts, cast(IO[bytes], stream))
        else:
            for part in parts:
                with part.open("rb") as source:
                    shutil.copyfileobj(source, stream, 1 << 22)
        staged.publish()


def check_writable_kind(path: Path) -> None:
    """Refuse a suffix that nothing can be written as.

    Raises:
        DataError: which suffixes there are.
    """
    if not path.name.endswith(SUFFIXES):
        raise DataError(
            f"unknown kind of output: {path}",
            got=f"suffix {path.suffix or 'none'}",
            expected=" ".join(SUFFIXES),
            remedy="give the output one of these suffixes",
        )


def _merge_tables(parts: Sequence[Path], stream: IO[bytes]) -> None:
    import pyarrow
    import pyarrow.parquet

    sources = [pyarrow.parquet.ParquetFile(part) for part in parts]
    filled = [source for source in sources if source.metadata.num_rows] or sources[:1]
    try:
        schema = pyarrow.unify_schemas([source.schema_arrow for source in filled])
    except pyarrow.ArrowException as error:
        raise DataError(
            "the parts have columns of different types", got=str(error), remedy="write .jsonl.zst instead"
        ) from error
    with pyarrow.parquet.ParquetWriter(stream, schema, compression="zstd") as writer:
        for source in filled:
            for group in range(source.num_row_groups):
                writer.write_table(_with_columns(source.read_row_group(group), schema))


def _with_columns(table: "pyarrow.Table", schema: "pyarrow.Schema") -> "pyarrow.Table":
    import pyarrow

    columns = [
        table.column(field.name).cast(field.type)
        if field.name in table.column_names
        else pyarrow.nulls(table.num_rows, field.type)
        for field in schema
    ]
    return pyarrow.Table.from_arrays(columns, schema=schema)


def _same_keys(rows: Sequence[dict[str, object]]) -> list[dict[str, object]]:
    """Every row with all keys, in the order of their first appearance; pyarrow looks at the first row only."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    return [{name: row.get(name) for name in names} for row in rows]


def _compressed(file: IO[bytes], suffix: str) -> IO[bytes]:
    if suffix == ".gz":
        return cast(IO[bytes], gzip.GzipFile(filename="", mode="wb", compresslevel=_GZIP_LEVEL, fileobj=file, mtime=0))
    if suffix == ".zst":
        compressor = zstandard.ZstdCompressor(level=_ZSTD_LEVEL, write_checksum=True)
        return cast(IO[bytes], compressor.stream_writer(file, closefd=False))
    return file
