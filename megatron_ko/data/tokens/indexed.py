"""Megatron's indexed data, byte for byte: PREFIX.bin holds the tokens, PREFIX.idx where each document begins.

.idx: magic, uint64 version, uint8 dtype code, uint64 sequences, uint64 document borders; then int32 lengths, int64 byte
offsets, int64 borders. Every document is one sequence here. Source: megatron.core.datasets.indexed_dataset.
"""

import hashlib
import mmap
import struct
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from megatron_ko.errors import DataError, conserve
from megatron_ko.storage.files import append_suffix

_MAGIC = b"MMIDIDX\x00\x00"
_VERSION = 1
_HEADER = struct.Struct("<9sQBQQ")
_CODES: dict[int, type[np.generic]] = {
    1: np.uint8, 2: np.int8, 3: np.int16, 4: np.int32, 5: np.int64, 6: np.float64, 7: np.float32, 8: np.uint16,
}  # fmt: skip
_CODE_OF = {np.dtype(kind): code for code, kind in _CODES.items()}
# Megatron's limit. uint16 could hold 36 more ids, but the same vocabulary must give the same files.
_UINT16_VOCABULARY = 65_500
_LONGEST_SEQUENCE = np.iinfo(np.int32).max
_CHUNK = 1 << 20


def token_dtype(vocab_size: int) -> np.dtype:
    """uint16 where the vocabulary fits by Megatron's rule, else int32."""
    return np.dtype(np.uint16 if vocab_size < _UINT16_VOCABULARY else np.int32)


def bin_path(prefix: Path) -> Path:
    """PREFIX.bin."""
    return append_suffix(prefix, ".bin")


def idx_path(prefix: Path) -> Path:
    """PREFIX.idx."""
    return append_suffix(prefix, ".idx")


class IndexedWriter:
    """Streams documents into an open .bin and writes the .idx at the end, in constant memory.

    Attributes:
        documents, tokens: written so far.
        sha256: of what is in .bin so far.
    """

    def __init__(self, bin_stream: BinaryIO, dtype: np.dtype, spool_folder: Path) -> None:
        self._bin, self._dtype = bin_stream, dtype
        self._lengths = tempfile.TemporaryFile(dir=spool_folder)  # noqa: SIM115 (lives as long as the writer)
        self.documents = self.tokens = 0
        self.sha256 = hashlib.sha256()

    def add(self, ids: np.ndarray, lengths: np.ndarray) -> None:
        """Append documents: ``ids`` [t] in the dtype of the file, ``lengths`` [n] in tokens."""
        assert ids.dtype == self._dtype
        conserve("tokens", int(lengths.sum()), ids.size)
        if lengths.size and int(lengths.max()) > _LONGEST_SEQUENCE:
            raise DataError("a document has more than 2**31 tokens", remedy="split it")
        payload = ids.view(np.uint8).data
        self._bin.write(payload)
        self.sha256.update(payload)
        self._lengths.write(lengths.astype("<i4").tobytes())
        self.documents += lengths.size
        self.tokens += ids.size

    @property
    def index_bytes(self) -> int:
        """Size of the .idx that ``write_index`` writes."""
        return _HEADER.size + 12 * self.documents + 8 * (self.documents + 1)

    def write_index(self, stream: BinaryIO) -> str:
        """Write the .idx and return its sha256."""
        digest = hashlib.sha256()

        def put(payload: bytes) -> None:
            stream.write(payload)
            digest.update(payload)

        put(_HEADER.pack(_MAGIC, _VERSION, _CODE_OF[self._dtype], self.documents, self.documents + 1))
        for lengths in self._spooled():
            put(lengths.tobytes())
        offset = 0
        for lengths in self._spooled():
            ends = np.cumsum(lengths, dtype="<i8") * self._dtype.itemsize
            put((np.concatenate(([0], ends[:-1])) + offset).astype("<i8").tobytes())
            offset += int(ends[-1])
        for first in range(0, self.documents + 1, _CHUNK):
            put(np.arange(first, min(first + _CHUNK, self.documents + 1), dtype="<i8").tobytes())
        self._lengths.close()
        return digest.hexdigest()

    def _spooled(self) -> Iterator[np.ndarray]:
        self._lengths.seek(0)
        while payload := self._lengths.read(4 * _CHUNK):
            yield np.frombuffer(payload, dtype="<i4")


class IndexedReader:
    """Reads a .bin/.idx pair after checking that they are complete and belong together.

    Attributes:
        dtype: of the tokens.
        lengths: [n] int32 tokens of each sequence.
        tokens: in all.

    Raises:
        DataError: a file is missing, is not an index, or has another size than the index says.
    """

    def __init__(self, prefix: Path) -> None:
        self.prefix = prefix
        for path in (bin_path(prefix), idx_path(prefix)):
            if not path.is_file():
                raise DataError(
                    f"indexed data is incomplete: no {path}",
                    expected=f"{bin_path(prefix).name} and {idx_path(prefix).name}",
                    remedy="check the prefix, or make it: megatron-ko data preprocess",
                )
        size = idx_path(prefix).stat().st_size
        if size < _HEADER.size:
            raise self._damaged(".idx", f"{size} bytes", f"at least {_HEADER.size}")
        self._index = np.memmap(idx_path(prefix), mode="r")
        magic, version, code, sequences, borders = _HEADER.unpack(self._index[: _HEADER.size].tobytes())
        if magic != _MAGIC or version != _VERSION or code not in _CODES:
            raise self._damaged(".idx", f"magic {magic!r}, version {version}, dtype {code}", "a Megatron index")
        expected = _HEADER.size + 12 * sequences + 8 * borders
        if size != expected:
            raise self._damaged(".idx", f"{size} bytes", f"{expected} for {sequences} sequences")
        self.dtype = np.dtype(_CODES[code])
        start = _HEADER.size
        self.lengths = self._index[start : start + 4 * sequences].view("<i4")
        start += 4 * sequences
        self.offsets = self._index[start : start + 8 * sequences].view("<i8")
        self.borders = self._index[start + 8 * sequences :].view("<i8")
        self.tokens = int(self.lengths.sum(dtype=np.int64))
        held = bin_path(prefix).stat().st_size
        if held != self.tokens * self.dtype.itemsize:
            raise self._damaged(".bin", f"{held} bytes", f"{self.tokens * self.dtype.itemsize} by its index")

    def __len__(self) -> int:
        """Number of sequences (documents)."""
        return int(self.lengths.size)

    def __getitem__(self, index: int) -> np.ndarray:
        """Tokens [t] of one document, read from the disk."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        offset = int(self.offsets[index])
        return np.fromfile(bin_path(self.prefix), dtype=self.dtype, count=int(self.lengths[index]), offset=offset)

    def stream(self, start: int, count: int) -> np.ndarray:
        """Tokens [count] from ``start`` on, as if all documents were one; behind the last one it begins again."""
        held = np.memmap(bin_path(self.prefix), mode="r", dtype=self.dtype)
        return np.asarray(held[(start + np.arange(count)) % self.tokens])

    def consistent(self) -> bool:
        """Whether offsets match the lengths, and borders the documents; reads the whole index."""
        ends = np.cumsum(self.lengths, dtype=np.int64) * self.dtype.itemsize
        follows = bool(np.array_equal(self.offsets[1:], ends[:-1])) and (not len(self) or int(self.offsets[0]) == 0)
        return follows and bool(np.array_equal(self.borders, np.arange(len(self) + 1)))

    def largest_id(self) -> int:
        """The largest token id, found by reading every token."""
        if not self.tokens:
            return -1
        largest = -1
        with bin_path(self.prefix).open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as held:
            for start in range(0, len(held), _CHUNK * self.dtype.itemsize):
                chunk = np.frombuffer(held[start : start + _CHUNK * self.dtype.itemsize], dtype=self.dtype)
                largest = max(largest, int(chunk.max()))
        return largest

    def _damaged(self, suffix: str, got: str, expected: str) -> DataError:
        return DataError(
            f"indexed data is damaged: {self.prefix}{suffix} is truncated or of another kind",
            got=got,
            expected=expected,
            remedy="copy it again, or make it again with megatron-ko data preprocess",
        )
