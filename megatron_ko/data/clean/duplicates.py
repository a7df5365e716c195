"""How much of a text is repetition: lines, the most frequent n-gram, repeated n-grams; exact, with cheap bounds.

The counts are those of Gopher (https://arxiv.org/abs/2112.11446, table A1) as datatrove implements them: characters
of the repeated elements over characters of the text. An upper bound from hashes, all of
them at once in numpy, makes the exact count unnecessary for most texts. It is never too small: decisions are exact.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cached_property
from itertools import accumulate

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.uint64]
Integers = npt.NDArray[np.int64]

# Below this number of words the exact count costs less than the bound.
_FEW_WORDS = 48
# Letters at the beginning of an n-gram that are compared first, if n is at least as large.
_PREFIX = 5
# Polynomial hash modulo 2**64: an odd base has an inverse, so the hash of any slice is one subtraction and product.
_BASE = 0x9E3779B97F4A7C15
_INVERSE = pow(_BASE, -1, 1 << 64)


def repeated(elements: Iterable[str]) -> tuple[int, int]:
    """Elements that occurred before, and their characters."""
    elements = list(elements)
    if len(set(elements)) == len(elements):
        return 0, 0
    seen: set[str] = set()
    number = characters = 0
    for element in elements:
        if element in seen:
            number += 1
            characters += len(element)
        else:
            seen.add(element)
    return number, characters


class WordNgrams:
    """Word n-grams of one text."""

    def __init__(self, words: Sequence[str]) -> None:
        self.words = words
        self._windows: dict[int, tuple[Array, Integers]] = {}

    def top(self, n: int) -> int:
        """Characters of the most frequent n-gram, spaces included, times its occurrences; ties: the earliest wins."""
        if len(self.words) < n:
            return 0
        grams = list(zip(*(self.words[i:] for i in range(n)), strict=False))
        if len(set(grams)) == len(grams):
            gram, count = grams[0], 1
        else:
            gram, count = Counter(grams).most_common(1)[0]
        return (sum(map(len, gram)) + n - 1) * count

    def again(self, n: int) -> int:
        """Characters of n-grams that occurred before; none is counted twice: after one, n words are skipped."""
        if n >= _PREFIX and not self._prefix_repeats:
            return 0
        words, seen, characters, index = self.words, set(), 0, 0
        last = len(words) - n
        while index <= last:
            gram = "".join(words[index : index + n])
            if gram in seen:
                characters += len(gram)
                index += n
            else:
                seen.add(gram)
                index += 1
        return characters

    def top_at_most(self, n: int) -> float:
        """Never below ``top``."""
        if len(self.words) < _FEW_WORDS:
            return self.top(n)
        hashes, lengths = self._window(n)
        order = np.argsort(hashes)
        first = np.flatnonzero(np.concatenate(([True], np.diff(hashes[order]) != 0)))
        counts = np.diff(np.append(first, len(order)))
        longest = np.maximum.reduceat(lengths[order], first)
        return float(((longest + (n - 1)) * counts).max())

    def again_at_most(self, n: int) -> float:
        """Never below ``again``: the characters of all words that lie in an n-gram that occurred before."""
        if len(self.words) < _FEW_WORDS:
            return self.again(n)
        hashes, _ = self._window(n)
        order = np.argsort(hashes, kind="stable")
        ordered = hashes[order]
        later = order[1:][ordered[1:] == ordered[:-1]]
        if not len(later):
            return 0.0
        edges = np.zeros(len(self.words) + 1, np.int64)
        np.add.at(edges, later, 1)
        np.subtract.at(edges, later + n, 1)
        inside = np.cumsum(edges[:-1]) > 0
        return float(self._lengths[inside].sum())

    @cached_property
    def _prefix_repeats(self) -> bool:
        """Whether two words begin the same letters in the joined text; if not, no long n-gram repeats."""
        joined = "".join(self.words)
        starts = accumulate(map(len, self.words[:-1]), initial=0)
        prefixes = [joined[start : start + _PREFIX] for start in starts]
        return len(set(prefixes)) < len(prefixes)

    @cached_property
    def _lengths(self) -> Integers:
        return np.fromiter(map(len, self.words), np.int64, len(self.words))

    @cached_property
    def _prefixes(self) -> tuple[Array, Array, Integers]:
        """Prefix hashes of the joined words, inverse powers, and where each word begins (and the last one ends)."""
        codes = np.frombuffer("".join(self.words).encode("utf-32-le", "surrogatepass"), np.uint32).astype(np.uint64)
        with np.errstate(over="ignore"):
            sums = np.zeros(len(codes) + 1, np.uint64)
            np.cumsum((codes + np.uint64(1)) * _powers(_BASE, len(codes)), out=sums[1:])
        starts = np.zeros(len(self.words) + 1, np.int64)
        np.cumsum(self._lengths, out=starts[1:])
        return sums, _powers(_INVERSE, len(codes) + 1), starts

    def _window(self, n: int) -> tuple[Array, Integers]:
        """Hash and characters of every n-gram's joined words."""
        if n not in self._windows:
            sums, inverse, starts = self._prefixes
            begin, end = starts[:-n], starts[n:]
            with np.errstate(over="ignore"):
                self._windows[n] = (sums[end] - sums[begin]) * inverse[begin], end - begin
        return self._windows[n]


_tables: dict[int, Array] = {}


def _powers(base: int, number: int) -> Array:
    """1, base, base**2, ... modulo 2**64."""
    table = _tables.get(base)
    if table is None or len(table) < number:
        factors = np.full(max(number, 1 << 12), base, np.uint64)
        factors[0] = 1
        with np.errstate(over="ignore"):
            table = _tables[base] = np.cumprod(factors, dtype=np.uint64)
    return table[:number]
