"""Find equal keys in the sorted runs of all chunks, one range of keys at a time, as large as memory allows."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TypedDict

import numpy as np

from megatron_ko.data.dedup.arrays import write_arrays
from megatron_ko.data.dedup.corpus import ChunkArrays

# Bytes of memory for each record while a range is sorted: a generous estimate.
_RECORD_BYTES = 96
# Members of a bucket that follow each other so closely are compared.
_WINDOW = 16


@dataclass(frozen=True)
class KeyRange:
    """Keys from ``low`` to below ``high`` of one band; exact hashes are band 0."""

    band: int
    low: int
    high: int

    def of(self, keys: np.ndarray) -> slice:
        """Where they are in a sorted array."""
        end = keys.size if self.high >> 64 else int(np.searchsorted(keys, np.uint64(self.high)))
        return slice(int(np.searchsorted(keys, np.uint64(self.low))), end)


def key_ranges(records: int, memory: int, bands: int = 1) -> Iterator[tuple[int, list[KeyRange]]]:
    """Numbered lists of ranges, each list to be done at once, that together cover every key of every band.

    Keys are hashes, so that equal ranges hold about equally many records.
    """
    ranges = max(1, -(-records * _RECORD_BYTES // memory))
    borders = [(number << 64) // ranges for number in range(ranges + 1)]
    # Bands that are small are done together: a unit of work costs a file.
    together = max(1, memory // max(1, records * _RECORD_BYTES))
    index = 0
    for first in range(0, bands, together):
        for low, high in pairwise(borders):
            yield index, [KeyRange(band, low, high) for band in range(first, min(bands, first + together))]
            index += 1


class JoinStatistics(TypedDict):
    """How many pairs were found."""

    pairs: int


class CandidateStatistics(JoinStatistics):
    """Also how many documents stand in buckets of more than 17."""

    crowded: int


class ExactJoin:
    """Writes "again" and "of": items whose hash an earlier chunk has, and the first item that has it."""

    def __init__(self, parts: ChunkArrays) -> None:
        self._parts = parts

    def __call__(self, ranges: list[KeyRange], part: Path) -> JoinStatistics:
        highs, lows, numbers = [], [], []
        for chunk, first in enumerate(self._parts.firsts[:-1]):
            arrays = self._parts[chunk]
            here = ranges[0].of(arrays["high"])
            highs.append(arrays["high"][here])
            lows.append(arrays["low"][here])
            numbers.append(arrays["order"][here] + first)
        high, low, number = (np.concatenate(column or [np.empty(0, np.uint64)]) for column in (highs, lows, numbers))
        order = np.argsort(high, kind="stable")
        if _collide(high[order], low[order]):
            order = np.lexsort((low, high))
        high, low, number = high[order], low[order], number[order].astype(np.int64)
        new = np.ones(high.size, bool)
        new[1:] = (high[1:] != high[:-1]) | (low[1:] != low[:-1])
        again = np.flatnonzero(~new)
        # Runs are read in the order of their chunks and the sort is stable: the first of a group is the earliest.
        of = number[np.flatnonzero(new)[np.cumsum(new)[again] - 1]] if again.size else again
        write_arrays(part, {"again": number[again], "of": of})
        return {"pairs": int(again.size)}


class CandidateJoin:
    """Writes "pairs": sorted, documents that share a band, as smaller number << 32 | larger number.

    In a bucket of more than 17 documents each is paired with the 16 before it only, so that the work stays linear.
    Documents with the text of an earlier one are left out; that one stands for them. The first ``existing`` documents
    are not paired with each other: all of them stay.
    """

    def __init__(self, parts: ChunkArrays, same_text: Path, existing: int = 0) -> None:
        self._parts, self._same_text, self._existing = parts, same_text, existing

    def __call__(self, ranges: list[KeyRange], part: Path) -> CandidateStatistics:
        same_text = np.memmap(self._same_text, np.int64, "r") if self._parts.total else np.empty(0, np.int64)
        found: list[np.ndarray] = []
        crowded = 0
        for wanted in ranges:
            keys, numbers = self._records(wanted, same_text)
            for lag in range(1, _WINDOW + 1):
                earlier = np.flatnonzero(keys[lag:] == keys[:-lag])
                if not earlier.size:
                    break
                earlier = earlier[numbers[earlier + lag] >= self._existing]
                found.append((numbers[earlier] << np.uint64(32)) | numbers[earlier + lag])
            if lag == _WINDOW:
                crowded += int(np.count_nonzero(keys[_WINDOW + 1 :] == keys[: -_WINDOW - 1]))
        pairs = np.unique(np.concatenate(found)) if found else np.empty(0, np.uint64)
        write_arrays(part, {"pairs": pairs})
        return {"pairs": int(pairs.size), "crowded": crowded}

    def _records(self, wanted: KeyRange, same_text: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Keys of a range, sorted, and their documents, rising where keys are equal."""
        keys, numbers = [np.empty(0, np.uint64)], [np.empty(0, np.uint64)]
        for chunk, first in enumerate(self._parts.firsts[:-1]):
            arrays = self._parts[chunk]
            here = wanted.of(arrays["keys"][wanted.band])
            owners = arrays["owners"][wanted.band][here] + first
            stands = same_text[owners] == owners
            keys.append(arrays["keys"][wanted.band][here][stands])
            numbers.append(owners[stands].astype(np.uint64))
        joined = np.concatenate(keys)
        order = np.argsort(joined, kind="stable")
        return joined[order], np.concatenate(numbers)[order]


def _collide(high: np.ndarray, low: np.ndarray) -> bool:
    """Whether different hashes share their upper half, in which case sorting by that half does not group them."""
    return bool(np.any((high[1:] == high[:-1]) & (low[1:] != low[:-1])))
