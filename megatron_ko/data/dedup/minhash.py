"""MinHash signatures by fast similarity sketching, and the keys of their bands.

A signature has ``hashes`` bins. In round r every shingle falls into one bin, with a value; a bin that was empty before
the round keeps the smallest value that fell into it. Whatever is empty after the last round gets an ordinary MinHash.
Two signatures agree in a bin with probability J, the Jaccard similarity, as with independent permutations and with the
same concentration, but for O(shingles + hashes log hashes) instead of O(shingles * hashes) operations.

Dahlgaard, Knudsen, Thorup: Fast Similarity Sketching, FOCS 2017.
"""

import numpy as np

from megatron_ko.data.dedup.shingles import Ragged, mix

_ROUNDS, _ROUND_BITS = 24, 5
# Complete rows are left out every few rounds.
_LOOKED = 4
_STEP = 0xD1B54A32D192ED03
_EMPTY = np.uint64(0xFFFFFFFFFFFFFFFF)
# Values that ``_fill`` computes at once.
_EXPANDED = 1 << 18


def signatures(shingles: Ragged, hashes: int) -> np.ndarray:
    """[n, hashes] uint64. Rows without shingles are all ones."""
    found = np.full((len(shingles), hashes), _EMPTY)
    rows, part = np.arange(len(shingles)), shingles
    for number in range(_ROUNDS):
        if number < 2 or number % _LOOKED == 0:
            rows = rows[(found[rows] == _EMPTY).any(axis=1) & (shingles.lengths[rows] > 0)]
            if not rows.size:
                return found
            part = _rows_of(shingles, rows)
            cells = np.repeat(rows * hashes, part.lengths)
        drawn = mix(part.values + _seed(number))
        bins = ((drawn >> np.uint64(32)) * np.uint64(hashes)) >> np.uint64(32)
        # The number of the round leads the value: what an earlier round has put into a bin stays.
        drawn >>= np.uint64(_ROUND_BITS)
        drawn |= np.uint64(number << (64 - _ROUND_BITS))
        np.minimum.at(found.reshape(-1), cells + bins.astype(np.int64), drawn)
    _fill(found, shingles, rows)
    return found


def band_keys(signature: np.ndarray, bands: int, rows: int) -> np.ndarray:
    """[n, bands] uint64: equal where ``rows`` consecutive values of the signatures are equal."""
    parts = signature[:, : bands * rows].reshape(len(signature), bands, rows)
    keys = np.zeros((len(signature), bands), np.uint64)
    for row in range(rows):
        keys = mix(keys * np.uint64(_STEP) + parts[:, :, row])
    return keys


def _seed(number: int) -> np.uint64:
    return np.uint64((number + 1) * _STEP & 0xFFFFFFFFFFFFFFFF)


def _rows_of(shingles: Ragged, rows: np.ndarray) -> Ragged:
    if rows.size == len(shingles):
        return shingles
    lengths = shingles.lengths[rows]
    offsets = np.zeros(rows.size + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    index = np.arange(offsets[-1]) + np.repeat(shingles.offsets[rows] - offsets[:-1], lengths)
    return Ragged(shingles.values.take(index), offsets)


def _fill(found: np.ndarray, shingles: Ragged, rows: np.ndarray) -> None:
    """Fill bins that no shingle fell into: with the smallest of one more hash, made for that bin, of all shingles."""
    owners, bins = np.nonzero(found[rows] == _EMPTY)
    owners = rows[owners]
    lengths = shingles.lengths[owners]
    first = 0
    while first < owners.size:
        last = first + max(1, int(np.searchsorted(np.cumsum(lengths[first:]), _EXPANDED, side="right")))
        sizes = lengths[first:last]
        begins = np.cumsum(sizes) - sizes
        index = np.arange(int(sizes.sum())) + np.repeat(shingles.offsets[owners[first:last]] - begins, sizes)
        seeds = (bins[first:last].astype(np.uint64) + np.uint64(_ROUNDS + 1)) * np.uint64(_STEP)
        drawn = mix(shingles.values.take(index) + np.repeat(seeds, sizes))
        found[owners[first:last], bins[first:last]] = np.minimum.reduceat(drawn, begins)
        first = last
