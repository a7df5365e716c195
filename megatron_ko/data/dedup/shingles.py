"""Texts to 64-bit hashes of their shingles: windows of characters or of words, all of a batch at once.

A window's hash is a polynomial over its units modulo 2**64, taken from running sums, and mixed. It depends on the text
alone: not on the process, the machine, or what else is in the batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, cast

import numpy as np

from megatron_ko.errors import DataError

UNITS = ("char", "word")
# Odd, and so invertible modulo 2**64.
_BASE = 0x9E3779B97F4A7C15
_SEGMENT = 1 << 18
# Every code point that Unicode calls white space.
_SPACES = (*range(0x9, 0xE), *range(0x1C, 0x21), 0x85, 0xA0, 0x1680, *range(0x2000, 0x200B))
_SPACES = (*_SPACES, 0x2028, 0x2029, 0x202F, 0x205F, 0x3000)


@dataclass(frozen=True)
class Shingles:
    """``size`` consecutive characters, or words (eojeol: what stands between white space)."""

    unit: Literal["char", "word"] = "char"
    size: int = 5

    def __str__(self) -> str:
        return f"{self.unit}:{self.size}"


@dataclass(frozen=True)
class Ragged:
    """Rows of different lengths in one array: row i is ``values[offsets[i] : offsets[i + 1]]``."""

    values: np.ndarray
    offsets: np.ndarray

    def __len__(self) -> int:
        return self.offsets.size - 1

    def __getitem__(self, row: int) -> np.ndarray:
        return self.values[self.offsets[row] : self.offsets[row + 1]]

    @property
    def lengths(self) -> np.ndarray:
        """[n] of each row."""
        return np.diff(self.offsets)


def parse_shingles(text: str) -> Shingles:
    """From "char:5" or "word:5".

    Raises:
        DataError: anything else.
    """
    unit, _, size = text.partition(":")
    if unit not in UNITS or not size.isascii() or not size.isdigit() or not 1 <= int(size) <= 1000:
        raise DataError(
            "these shingles are not known", got=text, expected="char:N or word:N, N from 1 to 1000", remedy="char:5"
        )
    return Shingles(cast(Literal["char", "word"], unit), int(size))


def shingle_hashes(texts: Sequence[str], shingles: Shingles) -> Ragged:
    """[t] uint64 hashes of the windows of every text, in order, repeated ones too.

    A text that is shorter than a window has one: itself. An empty one has none.
    """
    units = word_hashes(texts).words if shingles.unit == "word" else shingle_units(texts)
    return window_hashes(units, shingles.size)


def mix(values: np.ndarray) -> np.ndarray:
    """splitmix64's finaliser, a bijection in which every bit of the result depends on every bit of the input."""
    values = values ^ (values >> np.uint64(30))
    values *= np.uint64(0xBF58476D1CE4E5B9)
    values ^= values >> np.uint64(27)
    values *= np.uint64(0x94D049BB133111EB)
    values ^= values >> np.uint64(31)
    return values


def window_hashes(units: Ragged, size: int) -> Ragged:
    """Hashes of ``size`` consecutive units of each row; a shorter row is one window."""
    lengths = units.lengths
    counts = np.where(lengths >= size, lengths - size + 1, np.minimum(lengths, 1))
    offsets = _offsets(counts)
    hashes = np.empty(int(offsets[-1]), np.uint64)
    row = 0
    while row < len(units):
        # Whole rows up to a segment of units, so that what is computed stays in the cache.
        last = int(np.searchsorted(units.offsets, units.offsets[row] + _SEGMENT, side="right")) - 1
        last = min(max(last, row + 1), len(units))
        begin, end = units.offsets[row], units.offsets[last]
        starts = np.arange(offsets[last] - offsets[row])
        starts += np.repeat(units.offsets[row:last] - begin - (offsets[row:last] - offsets[row]), counts[row:last])
        ends = starts + np.repeat(np.minimum(lengths[row:last], size), counts[row:last])
        hashes[offsets[row] : offsets[last]] = _sums(units.values[begin:end], starts, ends)
        row = last
    return Ragged(hashes, offsets)


def shingle_units(texts: Sequence[str]) -> Ragged:
    """Characters as uint64, what windows of characters are made of."""
    encoded = "".join(texts).encode("utf-32-le", errors="surrogatepass")
    lengths = np.fromiter(map(len, texts), np.int64, len(texts))
    return Ragged(np.frombuffer(encoded, "<u4").astype(np.uint64), _offsets(lengths))


def range_hashes(units: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """The hashes that ``window_hashes`` gives, of any windows: units[start] to before units[end]."""
    hashes = np.empty(starts.size, np.uint64)
    order = np.argsort(starts, kind="stable")
    done = 0
    while done < order.size:
        base = int(starts[order[done]])
        last = done + int(np.searchsorted(starts[order[done:]], base + _SEGMENT, side="right"))
        here = order[done:last]
        hashes[here] = _sums(units[base : int(ends[here].max())], starts[here] - base, ends[here] - base)
        done = last
    return hashes


@dataclass(frozen=True)
class HashedWords:
    """The words of texts: their hashes, and where in its text each begins and ends, in characters."""

    words: Ragged
    begins: np.ndarray
    ends: np.ndarray


def word_hashes(texts: Sequence[str]) -> HashedWords:
    """Hashes of what stands between white space."""
    characters = shingle_units(texts)
    points, borders = characters.values, characters.offsets
    blank = _blank_table().take(np.minimum(points, 0x3001).astype(np.int64))
    inside = np.concatenate(([False], ~blank, [False]))
    first = np.zeros(points.size + 1, bool)
    first[borders] = True
    begins = np.flatnonzero(inside[1:-1] & (~inside[:-2] | first[:-1]))
    ends = np.flatnonzero(inside[1:-1] & (~inside[2:] | first[1:])) + 1
    hashes = np.empty(begins.size, np.uint64)
    # Sums run over a whole segment, so segments end between words.
    word = 0
    while word < begins.size:
        last = max(word + 1, int(np.searchsorted(ends, begins[word] + _SEGMENT, side="right")))
        base = begins[word]
        hashes[word:last] = _sums(points[base : ends[last - 1]], begins[word:last] - base, ends[word:last] - base)
        word = last
    offsets = np.searchsorted(begins, borders)
    rows = np.repeat(borders[:-1], np.diff(offsets))
    return HashedWords(Ragged(hashes, offsets), begins - rows, ends - rows)


def _sums(units: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """mix(sum of units[i] * BASE**(i - start) for start <= i < end), modulo 2**64."""
    powers, inverses = _powers(1 << max(16, int(units.size).bit_length()))
    running = np.zeros(units.size + 1, np.uint64)
    np.cumsum((units + np.uint64(1)) * powers[: units.size], out=running[1:])
    windows = running.take(ends)
    windows -= running.take(starts)
    windows *= inverses.take(starts)
    return mix(windows)


@lru_cache(maxsize=2)
def _powers(size: int) -> tuple[np.ndarray, np.ndarray]:
    """BASE**i and BASE**-i modulo 2**64, for i < size."""
    inverse = pow(_BASE, -1, 1 << 64)
    tables = []
    for base in (_BASE, inverse):
        steps = np.full(size, base, np.uint64)
        steps[0] = 1
        tables.append(np.multiply.accumulate(steps))
    return tables[0], tables[1]


@lru_cache(maxsize=1)
def _blank_table() -> np.ndarray:
    table = np.zeros(0x3002, bool)
    table[list(_SPACES)] = True
    return table


def _offsets(lengths: np.ndarray) -> np.ndarray:
    offsets = np.zeros(lengths.size + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets
