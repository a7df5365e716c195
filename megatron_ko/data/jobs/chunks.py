"""Cut inputs into chunks: what a worker does at a time, and what a kill costs. Borders depend on the inputs only."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import xxhash

from megatron_ko.data.text.blocks import FileSpan, RowGroup, Span, is_divisible, open_span, read_spans
from megatron_ko.data.text.inputs import input_bytes
from megatron_ko.data.text.records import Block, Reading
from megatron_ko.data.text.streams import COMPRESSED, STDIN
from megatron_ko.errors import DataError

__all__ = ["Chunk", "InputIdentity", "Reading", "check_unchanged", "identified_paths", "input_identity", "read_chunks"]

# By the name of each file its size and a hash of samples of it, and under ``_ORDER`` a hash of the names in order.
InputIdentity = dict[str, object]
_ORDER = "(order)"
_SMALLEST, _LARGEST = 2 << 20, 64 << 20
# The limit for chunks that are sent to workers as bytes, not as a place in a file.
_LARGEST_HELD = 16 << 20
_CHUNKS = 1024
_MANY_FILES = 64
# Bytes of text in a byte of an archive, roughly.
COMPRESSION = 4
_SAMPLE = 1 << 16


@dataclass(frozen=True)
class Chunk:
    """Consecutive records.

    Attributes:
        spans: in order; they may come from several files.
        read: bytes of the (compressed) inputs that were read for them, for progress.
    """

    spans: tuple[Span, ...]
    read: int

    @property
    def blocks(self) -> Iterator[Block]:
        """Its blocks, of about a megabyte each.

        Raises:
            DataError: a file is damaged.
        """
        for span in self.spans:
            yield from open_span(span)


def read_chunks(reading: Reading) -> Iterator[tuple[int, Chunk]]:
    """Number and content of every chunk, for ``jobs.run_job``.

    Raises:
        DataError: a file is damaged.
    """
    limit = reading.chunk_bytes or chunk_bytes(reading.inputs)
    whole = _whole_files(reading)
    index = read = 0
    share = 0.0  # of a full chunk
    spans: list[Span] = []
    for path in reading.inputs:
        before = 0
        for span in read_spans(path, reading, limit, whole=path in whole):
            spans.append(span)
            share += _share(span, limit)
            read, before = read + span.read - before, span.read
            if share >= 1:
                yield index, Chunk(tuple(spans), read)
                index, share, read, spans = index + 1, 0.0, 0, []
    if spans:
        yield index, Chunk(tuple(spans), read)


def input_identity(inputs: tuple[Path, ...]) -> InputIdentity:
    """What a resumed job compares: order, sizes, and hashes of the beginning, middle and end of every file."""
    files: InputIdentity = {
        str(path): [input_bytes(path), _sampled_hash(path)] if path != STDIN else "standard input" for path in inputs
    }
    return {**files, _ORDER: xxhash.xxh3_128_hexdigest("\0".join(map(str, inputs)).encode())}


def identified_paths(identity: InputIdentity) -> list[Path]:
    """The files that an identity names, in order."""
    return [Path(name) for name in identity if name != _ORDER]


def check_unchanged(identity: InputIdentity, folder: Path) -> None:
    """Refuse inputs that have changed since ``input_identity`` saw them, for example because a download still runs.

    Args:
        identity: the result of ``input_identity``; it may have been stored as JSON.
        folder: where the parts made from them are.

    Raises:
        DataError: which file.
    """
    for name, seen in identity.items():
        path = Path(name)
        if name == _ORDER or path == STDIN:
            continue
        now = input_identity((path,))[name] if path.is_file() else None
        if now != seen:
            assert isinstance(seen, list | tuple)
            raise DataError(
                f"{path} has changed since it was read",
                got=f"{path.stat().st_size:,} bytes" if now else "no such file",
                expected=f"{seen[0]:,} bytes, the same at its beginning, middle and end",
                remedy=f"put it back as it was, or remove {folder} and start anew when nobody writes to it",
            )


def chunk_bytes(inputs: tuple[Path, ...]) -> int:
    """Size of a chunk: small inputs are spread over many workers, large ones do not make a million parts."""
    total = sum(input_bytes(path) for path in inputs)
    return min(max(total // _CHUNKS, _SMALLEST), _LARGEST)


def _whole_files(reading: Reading) -> set[Path]:
    """Files that a worker reads from beginning to end, so that no single process has to decompress everything.

    One archive alone is faster in pieces. Of many archives each is a piece, unless it is very large.
    """
    files = [path for path in reading.inputs if path != STDIN and not is_divisible(path, reading)]
    return {path for path in files if path.stat().st_size <= _LARGEST} if len(files) >= _MANY_FILES else set()


def _share(span: Span, limit: int) -> float:
    """How much of a full chunk a span is."""
    if isinstance(span, Block):
        return len(span.payload) / min(limit, _LARGEST_HELD)
    if isinstance(span, FileSpan):
        return span.read * (COMPRESSION if Path(span.source).suffix in COMPRESSED else 1) / limit
    return (span.bytes if isinstance(span, RowGroup) else span.read - span.offset) / limit


def _sampled_hash(path: Path) -> str:
    state = xxhash.xxh3_128()
    size = path.stat().st_size
    with path.open("rb") as stream:
        for start in (0, size // 2, max(0, size - _SAMPLE)):
            stream.seek(start)
            state.update(stream.read(_SAMPLE))
    return state.hexdigest()
