"""Documents to files: .jsonl (also .gz, .zst) and .parquet. A file is complete or does not exist."""

import gzip
import json
import math
import shutil
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, cast

import orjson
import zstandard

from megatron_ko.data.text.columns import REMEDY, Piece, piece_of, same_table, schema_of, widened
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
    the types of the tables that its documents come from, otherwise types that hold all values exactly; its rows are
    held in memory until then, so it is for one chunk of documents.

    Args:
        path: new file; its suffix decides the kind.
        key: field or column of the text.

    Raises:
        DataError: unknown suffix, the file exists, a full disk, or (parquet) a field whose values have no common type.
    """

    def __init__(self, path: Path, key: str = "text") -> None:
        check_writable_kind(path)
        self._path, self._key = path, key
        self._staged = StagedFiles([path])
        self._rows: list[Document] = []
        self._pieces: list[Piece] = []
        self._stream: IO[bytes] | None = None

    def write(self, document: Document) -> None:
        """Append one document."""
        if self._stream is not None:
            row = {self._key: document.text, **document.fields}
            line = orjson.dumps(row, default=str)
            if b"null" in line and _not_finite(row):  # it would write null for NaN and Infinity
                line = json.dumps(row, ensure_ascii=False, default=str, separators=(",", ":")).encode("utf-8")
            self._stream.write(line + b"\n")
            return
        if len(self._rows) >= _ROWS or (self._rows and not same_table(self._rows[-1], document)):
            self._end_piece()
        self._rows.append(document)

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
            if error is None:
                self._finish()
                self._staged.publish()

    def _finish(self) -> None:
        if self._stream is not None:
            if self._stream is not self._file:
                self._stream.close()
            return
        self._end_piece()
        _write_table(cast(IO[bytes], self._file), self._pieces or [piece_of([], self._key)])

    def _end_piece(self) -> None:
        if self._rows:
            self._pieces.append(piece_of(self._rows, self._key))
        self._rows = []


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


def _not_finite(value: object) -> bool:
    """Whether a value holds NaN or an infinity."""
    if isinstance(value, dict):
        return any(map(_not_finite, value.values()))
    if isinstance(value, list):
        return any(map(_not_finite, value))
    return isinstance(value, float) and not math.isfinite(value)


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
    import pyarrow.parquet

    sources = [pyarrow.parquet.ParquetFile(part) for part in parts]
    filled = [source for source in sources if source.metadata.num_rows] or sources[:1]
    firsts = [0, *accumulate(source.metadata.num_rows for source in filled)]
    # One row group tells the types of a part: its first row with a value is looked for only if they do not fit.
    schema = schema_of([_row_group(source, 0, first) for source, first in zip(filled, firsts, strict=False)])
    with pyarrow.parquet.ParquetWriter(stream, schema, compression="zstd") as writer:
        for source, first in zip(filled, firsts, strict=False):
            for group in range(source.num_row_groups):
                piece = _row_group(source, group, first)
                writer.write_table(widened(piece, schema))
                first += piece.table.num_rows


def _row_group(source: "pyarrow.parquet.ParquetFile", group: int, first: int) -> Piece:
    table = source.read_row_group(group) if source.num_row_groups else source.schema_arrow.empty_table()
    return Piece(table, lambda row: f"document {first + row + 1:,} of the output")


def _write_table(stream: IO[bytes], pieces: Sequence[Piece]) -> None:
    import pyarrow
    import pyarrow.parquet

    schema = schema_of(pieces)
    try:
        with pyarrow.parquet.ParquetWriter(stream, schema, compression="zstd") as writer:
            for piece in pieces:
                writer.write_table(widened(piece, schema))
    except pyarrow.ArrowNotImplementedError as error:
        raise DataError("a field has no type in parquet", got=str(error), remedy=REMEDY) from error


def _compressed(file: IO[bytes], suffix: str) -> IO[bytes]:
    if suffix == ".gz":
        return cast(IO[bytes], gzip.GzipFile(filename="", mode="wb", compresslevel=_GZIP_LEVEL, fileobj=file, mtime=0))
    if suffix == ".zst":
        compressor = zstandard.ZstdCompressor(level=_ZSTD_LEVEL, write_checksum=True)
        return cast(IO[bytes], compressor.stream_writer(file, closefd=False))
    return file
