"""The documents of all sources, numbered. A chunk belongs to one source, and every pass reads it the same way."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

import numpy as np

from megatron_ko.data.dedup.arrays import open_arrays
from megatron_ko.data.dedup.options import InputFiles
from megatron_ko.data.jobs.chunks import Chunk, Reading, read_chunks
from megatron_ko.data.jobs.job import Part
from megatron_ko.data.text.documents import ParsedBlock, parse_block

# Pairs of document numbers are packed into 64 bits.
MOST_DOCUMENTS = 1 << 32


class ChunkStatistics(TypedDict):
    """What every pass over the corpus records of a chunk: the number of its source, and the bytes of input read."""

    source: int
    read: int


class ReadStatistics(ChunkStatistics):
    """What a first pass records as well: documents, bytes of their texts, and rejected records by reason."""

    documents: int
    bytes: int
    rejected: dict[str, int]


@dataclass(frozen=True)
class SourceChunk:
    """Consecutive blocks of one source: the number of the chunk, of the source, and where they lie."""

    index: int
    source: int
    chunk: Chunk

    def parsed(self, key: str) -> Iterator[ParsedBlock]:
        """Its blocks, with all fields, so that a record with a damaged field is rejected in every pass."""
        for block in self.chunk.blocks:
            yield parse_block(block, key, keep_fields=True)


def read_corpus(files: InputFiles, sources: Iterable[int], first: int = 0) -> Iterator[tuple[int, SourceChunk]]:
    """The chunks of some sources, for ``jobs.run_job``.

    Args:
        files: the inputs.
        sources: consecutive numbers of sources.
        first: number of their first chunk.

    Raises:
        DataError: a file is damaged.
    """
    index = first
    for source in sources:
        # All columns in every pass: the borders of chunks depend on the bytes that are read.
        reading = Reading(
            (files.paths[source],),
            files.key,
            files.text_unit,
            keep_fields=True,
            format=files.format_of(source),
            encoding=files.encoding_of(source),
        )
        for _, chunk in read_chunks(reading):
            yield index, SourceChunk(index, source, chunk)
            index += 1


class ChunkArrays:
    """The array file of every chunk of a pass, opened when it is needed, and which items are in it.

    Attributes:
        paths: one a chunk.
        firsts: [chunks + 1] number of the first document (or other item) of each chunk; the last is the total.
        sources: [chunks] number of the source.
    """

    def __init__(self, paths: Sequence[Path], firsts: np.ndarray, sources: Sequence[int]) -> None:
        self.paths, self.firsts, self.sources = list(paths), firsts, np.asarray(sources, np.int64)
        self._open: dict[int, dict[str, np.ndarray]] = {}

    def __reduce__(self) -> tuple[object, ...]:
        return ChunkArrays, (self.paths, self.firsts, self.sources)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, chunk: int) -> dict[str, np.ndarray]:
        if chunk not in self._open:
            self._open[chunk] = open_arrays(self.paths[chunk])
        return self._open[chunk]

    @property
    def total(self) -> int:
        """Items in all chunks."""
        return int(self.firsts[-1])

    def chunks_before(self, source: int) -> int:
        """Number of the chunks of all sources before this one."""
        return int(np.searchsorted(self.sources, source))

    def items_before(self, source: int) -> int:
        """Number of the items in them."""
        return int(self.firsts[self.chunks_before(source)])

    def chunk_of(self, numbers: np.ndarray) -> np.ndarray:
        """The chunk of each item."""
        return np.searchsorted(self.firsts, numbers, side="right") - 1

    def gather(self, name: str, numbers: np.ndarray) -> np.ndarray:
        """One value an item, from the arrays of that name."""
        found = np.empty(numbers.size, np.int64)
        order = np.argsort(numbers, kind="stable")
        ordered = numbers[order]
        # In this order the items of a chunk stand together.
        borders = np.searchsorted(ordered, self.firsts)
        for chunk in np.flatnonzero(np.diff(borders)).tolist():
            here = slice(borders[chunk], borders[chunk + 1])
            found[order[here]] = self[chunk][name][ordered[here] - self.firsts[chunk]]
        return found


def chunk_arrays(parts: Sequence[Part[ChunkStatistics]], counts: Sequence[int]) -> ChunkArrays:
    """The array files of a pass over the corpus, with the number of items in each."""
    firsts = np.zeros(len(parts) + 1, np.int64)
    np.cumsum(counts, out=firsts[1:])
    return ChunkArrays([part.path for part in parts], firsts, [part.statistics["source"] for part in parts])
