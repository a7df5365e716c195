"""Jaccard similarity from the smallest hashes of each document: exact for short documents, estimated for long ones.

A sketch is the ``SKETCH`` smallest 32-bit hashes of a document's distinct shingles, sorted. A document with fewer
shingles than that is there in full. Otherwise the smallest hashes of the union are a random sample of it; the standard
error is sqrt(J (1 - J) / SKETCH), at most 0.022.
"""

import numpy as np

from megatron_ko.data.dedup.shingles import Ragged

SKETCH = 512
# Of a long document only this many times SKETCH hashes are sorted: those below a limit.
_MARGIN = 3


def sketches(shingles: Ragged) -> Ragged:
    """Sorted uint32 of each row; at most ``SKETCH``."""
    lengths = shingles.lengths
    share = np.minimum(1.0, _MARGIN * SKETCH / np.maximum(lengths, 1))
    limits = np.minimum(share * 2.0**32, 2.0**32 - 1).astype(np.uint64)
    rows = np.repeat(np.arange(len(shingles)), lengths)
    values = shingles.values >> np.uint64(32)
    chosen = values <= limits[rows]
    rows, values = _distinct(rows[chosen], values[chosen])
    counts = np.bincount(rows, minlength=len(shingles))
    # A row of many repeated shingles may have too few below its limit, though not too few in all.
    short = np.flatnonzero((counts < SKETCH) & (share < 1.0))
    if short.size:
        every = [_distinct(np.zeros(1, np.int64), shingles[int(row)] >> np.uint64(32))[1] for row in short]
        others = ~np.isin(rows, short)
        rows = np.concatenate((rows[others], np.repeat(short, [len(row) for row in every])))
        values = np.concatenate((values[others], *every))
        order = np.argsort(rows, kind="stable")
        rows, values = rows[order], values[order]
        counts = np.bincount(rows, minlength=len(shingles))
    place = np.arange(rows.size) - (np.cumsum(counts) - counts)[rows]
    kept = place < SKETCH
    offsets = np.zeros(len(shingles) + 1, np.int64)
    np.cumsum(np.minimum(counts, SKETCH), out=offsets[1:])
    return Ragged(values[kept].astype(np.uint32), offsets)


def jaccard(left: Ragged, right: Ragged) -> np.ndarray:
    """[p] float64: similarity of row i of ``left`` and row i of ``right``."""
    pairs = len(left)
    numbers = np.arange(pairs, dtype=np.uint64) << np.uint64(32)
    both = [np.repeat(numbers, side.lengths) | side.values for side in (left, right)]
    # Two sorted runs: the stable sort merges them in linear time.
    merged = np.sort(np.concatenate(both), kind="stable")
    again = np.zeros(merged.size, bool)
    again[1:] = merged[1:] == merged[:-1]
    owner = (merged >> np.uint64(32)).astype(np.int64)
    distinct = np.bincount(owner[~again], minlength=pairs)
    before = np.cumsum(distinct) - distinct
    place = np.cumsum(~again) - 1 - before[owner]
    full = (left.lengths < SKETCH) & (right.lengths < SKETCH)
    sample = np.where(full, distinct, np.minimum(distinct, SKETCH))
    common = np.bincount(owner[again & (place < sample[owner])], minlength=pairs)
    return common / np.maximum(sample, 1)


def _distinct(rows: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    keys = np.sort((rows.astype(np.uint64) << np.uint64(32)) | values)
    first = np.ones(keys.size, bool)
    first[1:] = keys[1:] != keys[:-1]
    keys = keys[first]
    return (keys >> np.uint64(32)).astype(np.int64), keys & np.uint64(0xFFFFFFFF)
