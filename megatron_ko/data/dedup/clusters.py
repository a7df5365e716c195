"""From pairs to clusters, and to the document of each that stays. Arrays of a number per document are files."""

import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from megatron_ko.data.dedup.arrays import open_arrays
from megatron_ko.data.dedup.corpus import ChunkArrays
from megatron_ko.data.dedup.unionfind import roots, union

# Documents, or pairs, that are looked at together.
_BATCH = 1 << 18


@dataclass(frozen=True)
class Order:
    """Which of several documents is the best.

    Attributes:
        keep: the "first", the "longest", or by "priority": of the source that is given first, the longest.
        existing: so many documents, from the first, are of an existing corpus: better than any other, and all stay.
    """

    keep: str
    existing: int = 0


def disk_array(path: Path, size: int, dtype: str) -> np.ndarray:
    """A new array in a file, all zero."""
    with path.open("wb") as stream:
        if not size:
            return np.empty(0, dtype)
        stream.truncate(size * np.dtype(dtype).itemsize)
        if sys.platform == "linux":
            # A full disk is an error here; a page without a place on the disk would kill the process later.
            os.posix_fallocate(stream.fileno(), 0, size * np.dtype(dtype).itemsize)
    return np.memmap(path, dtype, "r+", shape=(size,))


def stored_array(path: Path, dtype: str) -> np.ndarray:
    """An array that ``disk_array`` made, read-only."""
    return np.memmap(path, dtype, "r") if path.stat().st_size else np.empty(0, dtype)


def same_text_clusters(path: Path, parts: ChunkArrays, joined: Sequence[Path]) -> None:
    """Write for every document the first one with the same text."""
    parent = _numbered(path, parts.total)
    for chunk, first in enumerate(parts.firsts[:-1]):
        arrays = parts[chunk]
        union(parent, arrays["again"] + first, arrays["of"] + first)
    for part in joined:
        arrays = open_arrays(part)
        _union_all(parent, arrays["again"], arrays["of"])
    _flatten(parent)


def near_clusters(path: Path, size: int, verified: Sequence[Path]) -> None:
    """Write for every document the first one that is connected to it through pairs."""
    parent = _numbered(path, size)
    for part in verified:
        arrays = open_arrays(part)
        _union_all(parent, arrays["left"], arrays["right"])
    _flatten(parent)


def choose_best(path: Path, same_text: Path, parts: ChunkArrays, order: Order) -> None:
    """Write for every document the best one, by policy, of those with the same text."""
    root = stored_array(same_text, "<i8")
    best = disk_array(path, root.size, "<i8")
    for here in _batches(root.size):
        best[here] = root[here]
    if order.keep == "first":
        return
    # While best[root] is the best document so far, all others still point to the root.
    for here in _batches(root.size):
        members = np.arange(here.start, here.stop)
        members = members[root[here] != members]
        found = np.unique(root[members])
        # Both in one list, those of this batch and those that were best so far.
        both, cluster = np.append(best[found], members), np.append(found, root[members])
        by_rank = np.lexsort((ranks(parts, both, order), cluster))
        first = np.ones(by_rank.size, bool)
        first[1:] = cluster[by_rank][1:] != cluster[by_rank][:-1]
        best[cluster[by_rank][first]] = both[by_rank][first]
    for here in _batches(root.size):
        best[here] = best[root[here]]


def choose_kept(path: Path, same_text: Path, best: Path, settled: Sequence[Path], existing: int = 0) -> None:
    """Write for every document the one kept for it: the best document with the text that it was settled for.

    The first ``existing`` documents stay, whatever they are like.
    """
    first, of_text = stored_array(same_text, "<i8"), stored_array(best, "<i8")
    kept = _numbered(path, first.size)
    for part in settled:
        arrays = open_arrays(part)
        kept[arrays["removed"]] = arrays["kept"]
    # Backwards, because all documents of a text read the entry of the first one, which is thus replaced last.
    for here in reversed(list(_batches(first.size))):
        kept[here] = of_text[kept[first[here]]]
    for here in _batches(existing):
        kept[here] = np.arange(here.start, here.stop)


def ranks(parts: ChunkArrays, numbers: np.ndarray, order: Order) -> np.ndarray:
    """[n] places of these documents in the order of the policy; 0 is the best, ties go to the earlier document."""
    source = parts.sources[parts.chunk_of(numbers)] if order.keep == "priority" else np.zeros(numbers.size, np.int64)
    size = np.zeros(numbers.size, np.int64) if order.keep == "first" else parts.gather("bytes", numbers)
    sorted_ = np.lexsort((numbers, -size, source, numbers >= order.existing))
    place = np.empty(sorted_.size, np.int64)
    place[sorted_] = np.arange(sorted_.size)
    return place


def _numbered(path: Path, size: int) -> np.ndarray:
    parent = disk_array(path, size, "<i8")
    for here in _batches(size):
        parent[here] = np.arange(here.start, here.stop)
    return parent


def _union_all(parent: np.ndarray, left: np.ndarray, right: np.ndarray) -> None:
    for here in _batches(left.size):
        union(parent, left[here], right[here])


def _flatten(parent: np.ndarray) -> None:
    for here in _batches(parent.size):
        parent[here] = roots(parent, np.arange(here.start, here.stop))


def _batches(size: int) -> Iterator[slice]:
    for first in range(0, size, _BATCH):
        yield slice(first, min(first + _BATCH, size))
