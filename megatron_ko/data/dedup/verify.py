"""Compare every pair of documents that share a band, once, and keep those that are near duplicates."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypedDict

import numpy as np

from megatron_ko.data.dedup.arrays import open_arrays, write_arrays
from megatron_ko.data.dedup.corpus import ChunkArrays
from megatron_ko.data.dedup.shingles import Ragged
from megatron_ko.data.dedup.similarity import jaccard

# Bytes of memory for each candidate pair.
_PAIR_BYTES = 64
# Pairs whose sketches are compared at once.
_BATCH = 1024
_LOWER = np.uint64(0xFFFFFFFF)


def document_ranges(documents: int, pairs: int, memory: int) -> Iterator[tuple[int, tuple[int, int]]]:
    """Numbered ranges of the smaller document of a pair, with about as many pairs as fit into memory."""
    ranges = max(1, min(documents, -(-pairs * _PAIR_BYTES // memory)))
    for index in range(ranges):
        yield index, (documents * index // ranges, documents * (index + 1) // ranges)


class VerifyStatistics(TypedDict):
    """How many pairs were compared, and how many are similar."""

    compared: int
    pairs: int


class VerifyWork:
    """Writes "left", "right": the candidate pairs at or above the threshold, the smaller number left, sorted."""

    def __init__(self, parts: ChunkArrays, candidates: Sequence[Path], threshold: float) -> None:
        self._parts, self._candidates, self._threshold = parts, list(candidates), threshold

    def __call__(self, documents: tuple[int, int], part: Path) -> VerifyStatistics:
        low, high = (np.uint64(border << 32) for border in documents)
        slices = []
        for path in self._candidates:
            pairs = open_arrays(path)["pairs"]
            slices.append(pairs[np.searchsorted(pairs, low) : np.searchsorted(pairs, high)])
        pairs = np.unique(np.concatenate(slices))
        left, right = (pairs >> np.uint64(32)).astype(np.int64), (pairs & _LOWER).astype(np.int64)
        found = similarity(self._parts, left, right) >= self._threshold
        write_arrays(part, {"left": left[found], "right": right[found]})
        return {"compared": int(pairs.size), "pairs": int(found.sum())}


def similarity(parts: ChunkArrays, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """[p] Jaccard similarity of pairs of documents, by their numbers."""
    found = np.zeros(left.size)
    for first in range(0, left.size, _BATCH):
        here = slice(first, first + _BATCH)
        found[here] = jaccard(_sketches(parts, left[here]), _sketches(parts, right[here]))
    return found


def _sketches(parts: ChunkArrays, numbers: np.ndarray) -> Ragged:
    chunks = parts.chunk_of(numbers)
    rows = []
    for chunk, local in zip(chunks.tolist(), (numbers - parts.firsts[chunks]).tolist(), strict=True):
        arrays = parts[chunk]
        offsets = arrays["sketch_offsets"]
        rows.append(arrays["sketch"][offsets[local] : offsets[local + 1]])
    offsets = np.zeros(len(rows) + 1, np.int64)
    np.cumsum([row.size for row in rows], out=offsets[1:])
    return Ragged(np.concatenate(rows), offsets)
