"""More merges for a BPE that is trained already: the pairs of its own pieces that are most frequent in new text.

The new merges come after all old ones. So a text is first cut as before, and then some of those pieces are joined:
what a new piece stands for in old pieces never depends on what is around it.
"""

import heapq
from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise

_SHIFT = 32


@dataclass(frozen=True)
class Merge:
    """One more merge: two pieces that become one, and how often they stood side by side."""

    left: str
    right: str
    count: int

    @property
    def piece(self) -> str:
        """What they become."""
        return self.left + self.right


def grow(words: Iterable[tuple[tuple[str, ...], int]], allowed: Callable[[str, str], bool]) -> Iterator[Merge]:
    """The next merges, one after the other, until no allowed pair occurs twice.

    Args:
        words: what is merged inside of: pieces of each word, and how often the word occurs.
        allowed: whether two pieces may become one; asked once a pair.

    Ties go to the pair that is smaller as text: the result does not depend on the order of ``words``.
    """
    return _Growing(words, allowed).merges()


class _Growing:
    """Pieces are numbers here, and a pair is one number: left << 32 | right."""

    def __init__(self, words: Iterable[tuple[tuple[str, ...], int]], allowed: Callable[[str, str], bool]) -> None:
        self._allowed = allowed
        self._pieces: list[str] = []
        self._numbers: dict[str, int] = {}
        self._words: list[list[int]] = []
        self._counts: list[int] = []
        self._pairs: dict[int, int] = {}
        self._where: dict[int, array[int]] = {}
        self._verdicts: dict[int, bool] = {}
        for pieces, count in words:
            self._words.append([self._number(piece) for piece in pieces])
            self._counts.append(count)
            self._count(len(self._words) - 1, count, set())
        self._heap = [self._entry(pair) for pair in self._pairs]
        heapq.heapify(self._heap)

    def merges(self) -> Iterator[Merge]:
        while self._heap:
            negative, left, right, pair = heapq.heappop(self._heap)
            count = self._pairs.get(pair, 0)
            if count < 2:
                continue
            if count != -negative:
                heapq.heappush(self._heap, self._entry(pair))
                continue
            self._apply(pair)
            yield Merge(left, right, count)

    def _apply(self, pair: int) -> None:
        left, right = pair >> _SHIFT, pair & ((1 << _SHIFT) - 1)
        merged = self._number(self._pieces[left] + self._pieces[right])
        changed: set[int] = set()
        for index in sorted(set(self._where.pop(pair))):
            word = self._words[index]
            joined = _joined(word, left, right, merged)
            if len(joined) == len(word):
                continue
            count = self._counts[index]
            before = {left << _SHIFT | right for left, right in pairwise(word)}
            for neighbours in pairwise(word):
                key = neighbours[0] << _SHIFT | neighbours[1]
                if key in self._pairs:
                    self._pairs[key] -= count
            self._words[index] = joined
            # Other pairs than the new ones can only have become rarer, which is noticed when they are taken.
            changed |= self._count(index, count, before)
        self._pairs.pop(pair, None)
        for key in changed:
            heapq.heappush(self._heap, self._entry(key))

    def _count(self, index: int, count: int, before: set[int]) -> set[int]:
        """Count the pairs of a word that may be merged; those that it did not have before are returned."""
        found = set()
        for left, right in pairwise(self._words[index]):
            pair = left << _SHIFT | right
            verdict = self._verdicts.get(pair)
            if verdict is None:
                verdict = self._verdicts[pair] = self._allowed(self._pieces[left], self._pieces[right])
            if verdict:
                self._pairs[pair] = self._pairs.get(pair, 0) + count
                found.add(pair)
        found -= before
        for pair in found:
            self._where.setdefault(pair, array("L")).append(index)
        return found

    def _number(self, piece: str) -> int:
        number = self._numbers.setdefault(piece, len(self._pieces))
        if number == len(self._pieces):
            self._pieces.append(piece)
        return number

    def _entry(self, pair: int) -> tuple[int, str, str, int]:
        left, right = self._pieces[pair >> _SHIFT], self._pieces[pair & ((1 << _SHIFT) - 1)]
        return -self._pairs[pair], left, right, pair


def _joined(word: list[int], left: int, right: int, merged: int) -> list[int]:
    """Every occurrence of the pair replaced, from the left, as `tokenizers` does."""
    result = []
    index = 0
    while index < len(word):
        if index + 1 < len(word) and word[index] == left and word[index + 1] == right:
            result.append(merged)
            index += 2
        else:
            result.append(word[index])
            index += 1
    return result
