"""Inputs to chunks: what one worker does at a time, what is lost in a kill. Their borders depend on the inputs only."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import xxhash

from megatron_ko.data.blocks import Block, read_blocks

_SMALLEST, _LARGEST = 4 << 20, 64 << 20
_CHUNKS = 1024
_SAMPLE = 1 << 16


@dataclass(frozen=True)
class Reading:
    """What is read, and how.

    Attributes:
        inputs: files in order.
        key: text field or column.
        text_unit: a document of a .txt file is a "line" or the whole "file".
        keep_fields: read the other columns of a table too.
    """

    inputs: tuple[Path, ...]
    key: str = "text"
    text_unit: str = "line"
    keep_fields: bool = False


@dataclass(frozen=True)
class Chunk:
    """Consecutive blocks.

    Attributes:
        blocks: in order; they may come from several files.
        read: bytes of the (compressed) inputs that were read for it, for progress.
    """

    blocks: tuple[Block, ...]
    read: int


def read_chunks(reading: Reading) -> Iterator[tuple[int, Chunk]]:
    """Number and content of every chunk, for ``jobs.run_job``.

    Raises:
        DataError: a file is damaged.
    """
    limit = chunk_bytes(reading.inputs)
    index = held = read = 0
    blocks: list[Block] = []
    for path in reading.inputs:
        before = 0
        for block in read_blocks(path, key=reading.key, text_unit=reading.text_unit, keep_fields=reading.keep_fields):
            blocks.append(block)
            held += block_bytes(block)
            read, before = read + block.read - before, block.read
            if held >= limit:
                yield index, Chunk(tuple(blocks), read)
                index, held, read, blocks = index + 1, 0, 0, []
    if blocks:
        yield index, Chunk(tuple(blocks), read)


def chunk_bytes(inputs: tuple[Path, ...]) -> int:
    """Size of a chunk: small inputs are spread over many workers, large ones do not make a million parts."""
    total = sum(path.stat().st_size for path in inputs)
    return min(max(total // _CHUNKS, _SMALLEST), _LARGEST)


def block_bytes(block: Block) -> int:
    """Size of a block in memory."""
    return len(block.payload) if isinstance(block.payload, bytes) else block.payload.nbytes


def input_identity(inputs: tuple[Path, ...]) -> list[list[object]]:
    """What a resumed job compares: path, size, and a hash of the beginning, the middle and the end of every file."""
    return [[str(path), path.stat().st_size, _sampled_hash(path)] for path in inputs]


def _sampled_hash(path: Path) -> str:
    state = xxhash.xxh3_128()
    size = path.stat().st_size
    with path.open("rb") as stream:
        for start in (0, size // 2, max(0, size - _SAMPLE)):
            stream.seek(start)
            state.update(stream.read(_SAMPLE))
    return state.hexdigest()
