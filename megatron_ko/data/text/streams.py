"""Bytes of a file or of the standard input, decompressed; damage is an error that says where."""

import gzip
import io
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import IO, cast

import xxhash
import zstandard

from megatron_ko.data.text.encodings import (
    Readable,
    Transcoded,
    first_failure,
    looks_like_cp949,
    marked_encoding,
    other_encoding,
)
from megatron_ko.data.text.formats import Encoding
from megatron_ko.data.text.records import BLOCK_BYTES
from megatron_ko.errors import DataError
from megatron_ko.log import get_logger

_log = get_logger(__name__)

STDIN = Path("-")
COMPRESSED = (".gz", ".zst")
_GZIP_MAGIC, _ZSTD_MAGIC = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
# `zstd --long=31`, with which large dumps are compressed; so much memory is used only if a frame asks for it.
_LARGEST_WINDOW = 1 << 31
_DAMAGE = (EOFError, zlib.error, zstandard.ZstdError, gzip.BadGzipFile)


def without_compression(path: Path) -> Path:
    """The name without .gz or .zst."""
    return Path(path.stem) if path.suffix.lower() in COMPRESSED else path


class StandardInput:
    """The standard input. It can be read only once, so its size and hash are computed while it is read."""

    def __init__(self) -> None:
        self.bytes = 0
        self._hash = xxhash.xxh3_128()

    def read(self, size: int, /) -> bytes:
        """Up to ``size`` bytes; fewer only at the end."""
        content = sys.stdin.buffer.read(size)
        self.bytes += len(content)
        self._hash.update(content)
        return content

    def tell(self) -> int:
        """Bytes read so far."""
        return self.bytes

    def content_hash(self) -> str:
        """xxh3_128 of what was read."""
        return self._hash.hexdigest()


standard_input = StandardInput()


class Stream:
    """Decompressed bytes, as UTF-8 if they are in another encoding, and how many bytes of the file were read for them.

    Attributes:
        path: as the user gave it.
    """

    def __init__(self, path: Path, raw: IO[bytes] | StandardInput, encoding: Encoding = Encoding.utf_8) -> None:
        self.path, self._raw = path, raw
        self._content = self._decompressed(path.suffix.lower())
        if encoding is not Encoding.utf_8:
            self._content = Transcoded(path, self._content, encoding)

    def read(self, size: int) -> bytes:
        """Up to ``size`` bytes; fewer only at the end.

        Raises:
            DataError: the file is damaged or cut short.
        """
        try:
            return self._content.read(size)
        except _DAMAGE as error:
            raise DataError(
                f"{self.path} is damaged",
                got=f"{error}, at byte {self.consumed():,} of the file or shortly before",
                expected="a complete compressed file",
                remedy="download or compress it again",
            ) from error

    def consumed(self) -> int:
        """Bytes of the file itself that have been read."""
        return self._raw.tell()

    def _decompressed(self, suffix: str) -> Readable:
        raw: Readable = self._raw
        if isinstance(self._raw, StandardInput):
            beginning = cast(io.BufferedReader, sys.stdin.buffer).peek(4)[:4]
            suffix = ".gz" if beginning.startswith(_GZIP_MAGIC) else ".zst" if beginning == _ZSTD_MAGIC else ""
        if suffix == ".gz":
            return cast(Readable, gzip.GzipFile(fileobj=cast(IO[bytes], raw)))
        return _WholeZstd(raw) if suffix == ".zst" else raw


@contextmanager
def open_stream(path: Path, encoding: Encoding = Encoding.utf_8) -> Iterator[Stream]:
    """A file, or the standard input, as a stream of decompressed bytes; those of another encoding become UTF-8.

    Raises:
        DataError: the standard input was read before, or the file was cut at its beginning.
    """
    if path == STDIN:
        if standard_input.bytes:
            raise DataError("the standard input was read before", expected="'-' once", remedy="give it once")
        yield Stream(path, standard_input, encoding)
        return
    if path.suffix.lower() in COMPRESSED and not path.stat().st_size:
        raise DataError(
            f"{path} is damaged", got="0 bytes", expected="a complete compressed file", remedy="download it again"
        )
    with path.open("rb") as raw:
        yield Stream(path, raw, encoding)


class _WholeZstd:
    """A reader that reports a truncated frame; zstandard's own one just ends there."""

    def __init__(self, raw: Readable) -> None:
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
                self._frame = zstandard.ZstdDecompressor(max_window_size=_LARGEST_WINDOW).decompressobj()
            self._output += self._frame.decompress(self._input)
            self._input = b""
            if self._frame.eof:
                self._input, self._frame = self._frame.unused_data, None
        result, self._output = self._output[:size], self._output[size:]
        return result


def check_beginning(path: Path, beginning: bytes) -> None:
    """Refuse a file that is not UTF-8 at all, instead of every line of it.

    Raises:
        DataError: it is in UTF-16 or CP949, or compressed although its name does not say so.
    """
    if marked_encoding(beginning) is Encoding.utf_16:
        raise other_encoding(path, Encoding.utf_16, Encoding.utf_8)
    packed = ".gz" if beginning.startswith(_GZIP_MAGIC) else ".zst" if beginning.startswith(_ZSTD_MAGIC) else None
    if packed is not None:
        raise DataError(
            f"{path} is compressed, but its name does not say so",
            got=f"bytes {beginning[:4].hex(' ')} at its beginning",
            remedy=f"mv {path} {path}{packed}",
        )
    if looks_like_cp949(beginning):
        raise other_encoding(path, Encoding.cp949, Encoding.utf_8)


def file_encoding(path: Path, encoding: Encoding) -> Encoding:
    """The encoding of a file. "auto" reads all of it: by its mark, else UTF-8, else CP949; what is found is told once.

    Raises:
        DataError: it is neither as a whole, or the standard input, which cannot be read twice.
    """
    if encoding is not Encoding.auto:
        return encoding
    if path == STDIN:
        raise DataError(
            "the encoding of the standard input cannot be found out",
            got="--encoding auto",
            expected="an encoding: the input is read only once",
            remedy=f"--encoding {Encoding.cp949.value}",
        )
    status = path.stat()
    return _found_encoding(path, status.st_size, status.st_mtime_ns)


@cache
def _found_encoding(path: Path, size: int, changed: int) -> Encoding:
    """The encoding of a file in one of its states."""
    with open_stream(path) as stream:
        found = marked_encoding(stream.read(BLOCK_BYTES))
    if found is None:
        failures = {}
        for candidate in (Encoding.utf_8, Encoding.cp949):
            with open_stream(path) as stream:
                failures[candidate] = first_failure(iter(lambda: stream.read(BLOCK_BYTES), b""), candidate)
            if failures[candidate] is None:
                found = candidate
                break
        else:
            raise DataError(
                f"{path} is in no one encoding",
                got=", ".join(f"no {name.value.upper()} at line {line:,}" for name, line in failures.items()),
                expected="all of it in UTF-8, or in CP949",
                remedy="--encoding utf-8 or --encoding cp949: records that are not are then rejected one by one",
            )
    if found is not Encoding.utf_8:
        _log.warning("%s: read as %s", path, found.value.upper())
    return found
