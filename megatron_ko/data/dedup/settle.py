"""Decide which documents of a cluster of near duplicates stay.

A cluster is what is connected through pairs. In a chain A ~ B ~ C the ends may have nothing in common, and with many
short documents such chains grow to thousands. So a document goes only if it is similar to one that stays: the best
document (by the policy) stays, those similar to it go, the best of the rest stays, and so on. Every document that goes
is similar, at or above the threshold, to the better one that is named as kept for it.

Not all similar pairs are known: in a crowded bucket a document was compared with its neighbours only. If a neighbour
goes in favour of a document L, the document is compared with L as well.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypedDict

import numpy as np

from megatron_ko.data.dedup.arrays import open_arrays, write_arrays
from megatron_ko.data.dedup.clusters import Order, ranks, stored_array
from megatron_ko.data.dedup.corpus import ChunkArrays
from megatron_ko.data.dedup.verify import similarity

_BATCH = 1 << 18
# Whether documents left[i] and right[i] are similar.
Similar = Callable[[np.ndarray, np.ndarray], np.ndarray]


class SettleStatistics(TypedDict):
    """How many clusters there are, and how many of their documents go and stay."""

    clusters: int
    removed: int
    kept: int


class SettleWork:
    """Writes "removed" and "kept" for the clusters whose smallest document lies in a range.

    Documents are named by the first one with the same text; ``best`` tells which of these is the best by the policy.

    Args:
        parts: of all chunks.
        verified: similar pairs.
        arrays: files: clusters, and best documents.
        order: which documents are better; none of its existing ones goes.
        threshold: of similarity.
    """

    def __init__(
        self, parts: ChunkArrays, verified: Sequence[Path], arrays: tuple[Path, Path], order: Order, threshold: float
    ) -> None:
        self._parts, self._verified = parts, list(verified)
        self._clusters, self._best = arrays
        self._order, self._threshold = order, threshold

    def __call__(self, documents: tuple[int, int], part: Path) -> SettleStatistics:
        left, right = self._pairs(*documents)
        numbers, places = np.unique(np.concatenate((left, right)), return_inverse=True)
        best = stored_array(self._best, "<i8")[numbers]
        order = np.argsort(ranks(self._parts, best, self._order), kind="stable")
        # Named by rank, the better one of two documents is the smaller.
        rank = np.empty(order.size, np.int64)
        rank[order] = np.arange(order.size)
        numbers = numbers[order]
        left, right = rank[places[: left.size]], rank[places[left.size :]]

        def similar(one: np.ndarray, two: np.ndarray) -> np.ndarray:
            alike = similarity(self._parts, numbers[one], numbers[two]) >= self._threshold
            stay = (numbers[one] < self._order.existing) & (numbers[two] < self._order.existing)
            return alike & ~stay

        leader = settle(numbers.size, np.minimum(left, right), np.maximum(left, right), similar)
        gone = np.flatnonzero(leader != np.arange(leader.size))
        write_arrays(part, {"removed": numbers[gone], "kept": numbers[leader[gone]]})
        clusters = np.unique(stored_array(self._clusters, "<i8")[numbers]).size
        return {"clusters": clusters, "removed": int(gone.size), "kept": int(numbers.size - gone.size)}

    def _pairs(self, low: int, high: int) -> tuple[np.ndarray, np.ndarray]:
        clusters = stored_array(self._clusters, "<i8")
        found: list[list[np.ndarray]] = [[np.empty(0, np.int64)], [np.empty(0, np.int64)]]
        for path in self._verified:
            arrays = open_arrays(path)
            for first in range(0, arrays["left"].size, _BATCH):
                pair = [arrays[side][first : first + _BATCH] for side in ("left", "right")]
                cluster = clusters[pair[0]]
                here = (cluster >= low) & (cluster < high)
                for column, side in zip(found, pair, strict=True):
                    column.append(side[here])
        return np.concatenate(found[0]), np.concatenate(found[1])


def settle(size: int, better: np.ndarray, worse: np.ndarray, similar: Similar) -> np.ndarray:
    """[size] for every document the one that stays for it: itself, or a better one that it is similar to.

    Args:
        size: documents, named by rank: 0 is the best.
        better, worse: known pairs of similar documents; better[i] < worse[i].
        similar: asked about pairs that are not known.
    """
    leader = np.arange(size)
    active = np.ones(size, bool)
    while active.any():
        beaten = np.zeros(size, bool)
        beaten[worse] = True
        staying = active & ~beaten
        active &= beaten
        direct = staying[better]
        gone = _remove(leader, active, worse[direct], better[direct])
        while gone.any():
            gone = _inherit(leader, active, gone, (better, worse), similar)
        both = active[better] & active[worse]
        better, worse = better[both], worse[both]
    return leader


def _remove(leader: np.ndarray, active: np.ndarray, documents: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """Give each of these documents the best of its kept ones; the mask of those that were active until now."""
    gone = np.zeros(active.size, bool)
    gone[documents] = active[documents]
    np.minimum.at(leader, documents, kept)
    active[gone] = False
    return gone


def _inherit(
    leader: np.ndarray, active: np.ndarray, gone: np.ndarray, pairs: tuple[np.ndarray, np.ndarray], similar: Similar
) -> np.ndarray:
    """Compare the active neighbours of what has just gone with what stays for it; the mask of those that go now."""
    one = np.concatenate(pairs)
    two = np.concatenate(pairs[::-1])
    near = gone[one] & active[two]
    kept, documents = leader[one[near]], two[near]
    worse = kept < documents
    asked = np.unique(kept[worse] << 32 | documents[worse])
    kept, documents = asked >> 32, asked & 0xFFFFFFFF
    yes = similar(kept, documents)
    return _remove(leader, active, documents[yes], kept[yes])
