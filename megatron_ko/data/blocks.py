"""Files to blocks of about a megabyte: what one process reads and another one parses and encodes.

A block holds whole records. Its bytes are not interpreted here, so that reading keeps ahead of many workers, whatever
the input size, in bounded memory.
"""

import gzip
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Literal, cast

import xxhash
import zstandard

from megatron_ko.errors import DataError

if TYPE_CHECKING:
    import pyarrow

BLOCK_BYTES = 1 << 20
# One record must fit into memory several times over. A file without line breaks is a mistake, not a document.
LARGEST_RECORD = 256 << 20
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"

Format = Literal["txt", "jsonl", "parquet", "file"]
FORMATS: dict[str, Format] = {".txt": "txt", ".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet"}
_COMPRESSED = (".gz", ".zst")


@dataclass(frozen=True)
class Block:
    """Consecutive records of one source.

    Attributes:
        source: path as the user gave it.
        format: how to parse ``payload``.
        first: number of the first record; lines count from 1, rows of a parquet file from 0.
        payload: lines of bytes, the whole file (format "file"), or rows, in which strings are bytes (parquet).
        read: bytes of the (compressed) file that have been read so far, for progress.
    """

    source: str
    format: Format
    first: int
    payload: "bytes | pyarrow.RecordBatch"
    read: int


def check_inputs(inputs: Sequence[Path]) -> None:
    """Refuse, before any work, files that are missing, of unknown kind, or given twice (also as a copy).

    Raises:
        DataError: which file, and why.
    """
    if not inputs:
        raise DataError("no input was given", remedy="--input FILE")
    same_size: dict[int, list[Path]] = {}
    for path in inputs:
        format_of(path)
        if not path.is_file():
            raise DataError(f"no such file: {path}", remedy="check --input")
        same_size.setdefault(path.stat().st_size, []).append(path)
    for candidates in same_size.values():
        seen: dict[str, Path] = {}
        for path in candidates if len(candidates) > 1 else ():
            digest = content_hash(path)
            if digest in seen and path.stat().st_size:
                raise DataError(
                    "the same file is given twice",
                    got=f"{seen[digest]} and {path}",
                    expected="every document once",
                    remedy="remove one of them from --input",
                )
            seen[digest] = path


def content_hash(path: Path) -> str:
    """xxh3_128 of the bytes of a file, as hexadecimal digits."""
    state = xxhash.xxh3_128()
    with path.open("rb") as stream:
        while chunk := stream.read(BLOCK_BYTES):
            state.update(chunk)
    return state.hexdigest()


def format_of(path: Path) -> Format:
    """Format by suffix, looking through .gz and .zst.

    Raises:
        DataError: unknown suffix.
    """
    inner = Path(path.stem) if path.suffix in _COMPRESSED else path
    kind = FORMATS.get(inner.suffix)
    if kind is None or (kind == "parquet" and inner is not path):
        raise DataError(
            f"unknown kind of file: {path}",
            got=f"suffix {''.join(path.suffixes[-2:]) or 'none'}",
            expected=".txt .jsonl (also .gz, .zst) .parquet",
            remedy="rename or convert it",
        )
    return kind


def read_blocks(
    path: Path, *, key: str = "text", text_unit: str = "line", keep_fields: bool = False
) -> Iterator[Block]:
    """Stream the blocks of one file.

    Args:
        path: .txt, .jsonl (either also .gz or .zst) or .parquet.
        key: column of a parquet file.
        text_unit: "line" for one document a line of a .txt file, "file" for one document a file.
        keep_fields: read the other columns of a parquet file too.

    Raises:
        DataError: the file is damaged, or one record is larger than 256 MiB.
    """
    kind = format_of(path)
    if kind == "parquet":
        yield from _parquet_blocks(path, key, keep_fields)
        return
    with path.open("rb") as raw:
        stream = _decompressed(raw, path.suffix)
        try:
            if kind == "txt" and text_unit == "file":
                payload = stream.read(LARGEST_RECORD + 1)
                _check_record(path, 1, len(payload))
                yield Block(str(path), "file", 1, payload.removeprefix(_BYTE_ORDER_MARK), raw.tell())
            else:
                yield from _line_blocks(path, kind, raw, stream)
        except (EOFError, zlib.error, zstandard.ZstdError, gzip.BadGzipFile) as error:
            raise DataError(
                f"{path} is damaged",
                got=str(error),
                expected="a complete compressed file",
                remedy="download or compress it again",
            ) from error


def _line_blocks(path: Path, kind: Format, raw: IO[bytes], stream: IO[bytes]) -> Iterator[Block]:
    first, rest, fresh = 1, b"", True
    while True:
        chunk = stream.read(BLOCK_BYTES)
        if fresh:
            chunk, fresh = chunk.removeprefix(_BYTE_ORDER_MARK), False
        if not chunk:
            break
        end = chunk.rfind(b"\n") + 1
        if not end:
            rest += chunk
            _check_record(path, first, len(rest))
            continue
        payload, rest = rest + chunk[:end], chunk[end:]
        yield Block(str(path), kind, first, payload, raw.tell())
        first += payload.count(b"\n")
    if rest:
        yield Block(str(path), kind, first, rest, raw.tell())


def _parquet_blocks(path: Path, key: str, keep_fields: bool) -> Iterator[Block]:
    import pyarrow
    import pyarrow.parquet as parquet

    try:
        file = parquet.ParquetFile(path)
        names = file.schema_arrow.names
        if key not in names:
            raise DataError(
                f"{path} has no column {key!r}", got=f"columns {', '.join(names)}", remedy="--json-key COLUMN"
            )
        first, size = 0, path.stat().st_size
        for batch in file.iter_batches(batch_size=1024, columns=None if keep_fields else [key]):
            read = size * (first + batch.num_rows) // max(1, file.metadata.num_rows)
            yield Block(str(path), "parquet", first, _strings_as_bytes(batch, key), read)
            first += batch.num_rows
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path} is damaged", got=str(error), remedy="write the parquet file again") from error


def _strings_as_bytes(batch: "pyarrow.RecordBatch", key: str) -> "pyarrow.RecordBatch":
    """Strings are taken as bytes: invalid UTF-8 is one bad record, not the end of the file. Binary fields are left."""
    import pyarrow

    binary = {pyarrow.string(): pyarrow.binary(), pyarrow.large_string(): pyarrow.large_binary()}
    kept = [field.name for field in batch.schema if field.name == key or field.type not in binary.values()]
    columns = [batch.column(name).cast(binary.get(batch.column(name).type, batch.column(name).type)) for name in kept]
    return pyarrow.RecordBatch.from_arrays(columns, names=kept)


def _decompressed(raw: IO[bytes], suffix: str) -> IO[bytes]:
    if suffix == ".gz":
        return cast(IO[bytes], gzip.GzipFile(fileobj=raw))
    if suffix == ".zst":
        return cast(IO[bytes], _WholeZstd(raw))
    return raw


class _WholeZstd:
    """zstandard's reader ends quietly in a truncated frame; this one notices."""

    def __init__(self, raw: IO[bytes]) -> None:
        self._raw = raw
        self._frame: zstandard.ZstdDecompressionObj | None = None
        self._input = b""
        self._output = b""

    def read(self, size: int) -> bytes:
        """Up to ``size`` decompressed bytes; fewer only at the end.

        Raises:
            EOFError: the file ends inside a frame.
        """
        while len(self._output) < size:
            if not self._input:
                self._input = self._raw.read(BLOCK_BYTES // 8)
            if not self._input:
                if self._frame is not None:
                    raise EOFError("compressed file ended before the end-of-stream marker was reached")
                break
            if self._frame is None:
                self._frame = zstandard.ZstdDecompressor().decompressobj()
            self._output += self._frame.decompress(self._input)
            self._input = b""
            if self._frame.eof:
                self._input, self._frame = self._frame.unused_data, None
        result, self._output = self._output[:size], self._output[size:]
        return result


def _check_record(path: Path, position: int, size: int) -> None:
    if size > LARGEST_RECORD:
        raise DataError(
            f"one record of {path} is too large",
            got=f"more than {LARGEST_RECORD >> 20} MiB at record {position}",
            expected="one document a line",
            remedy="split the file into lines",
        )
