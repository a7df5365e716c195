"""What was found: clusters by size, duplicates between sources, and some clusters to look at."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from megatron_ko.data.dedup.clusters import disk_array, stored_array
from megatron_ko.data.dedup.corpus import ChunkArrays
from megatron_ko.data.dedup.manifest import ClusterEntry, ShownDocument, SourcePair
from megatron_ko.data.dedup.output import RemovedStatistics
from megatron_ko.data.jobs.job import Part

_SHOWN_CLUSTERS = 5
_SHOWN_MEMBERS = 3
_BATCH = 1 << 18
# Which documents of a batch count.
Counted = Callable[[slice], np.ndarray]


@dataclass(frozen=True)
class ShownCluster:
    """A cluster to look at: how many documents, and the numbers of some of them, the kept one first."""

    size: int
    members: list[int]


@dataclass(frozen=True)
class Clusters:
    """Clusters of more than one document.

    Attributes:
        number: how many.
        documents: in all of them, kept ones included.
        histogram: number of clusters by size: "2", "3", "4-7", "8-15", ...
        largest: those of most documents.
        most_varied: those of most different texts; size and members count each text once.
    """

    number: int
    documents: int
    histogram: dict[str, int]
    largest: list[ShownCluster]
    most_varied: list[ShownCluster]

    def shown(self) -> frozenset[int]:
        """The documents of the clusters to look at."""
        return frozenset(number for cluster in (*self.largest, *self.most_varied) for number in cluster.members)


def describe_clusters(kept_path: Path, same_text_path: Path, scratch: Path) -> Clusters:
    """Count clusters; memory does not grow with the corpus.

    Args:
        kept_path: for every document the one of its cluster that stays.
        same_text_path: for every document the first one with the same text.
        scratch: file for the sizes.
    """
    kept, same_text = stored_array(kept_path, "<i8"), stored_array(same_text_path, "<i8")
    every = np.ones(_BATCH, bool)
    sizes = _sizes(kept, scratch, lambda here: every[: here.stop - here.start])
    counts = np.zeros(64, np.int64)
    documents = 0
    for here in _batches(kept.size):
        found = sizes[here][sizes[here] > 1]
        documents += int(found.sum())
        places = np.where(found < 4, found, np.floor(np.log2(found)).astype(np.int64) + 2)
        counts += np.bincount(places, minlength=64)[:64]
    largest = _shown(kept, sizes, lambda here: every[: here.stop - here.start])

    def first_of_text(here: slice) -> np.ndarray:
        return same_text[here] == np.arange(here.start, here.stop)

    most_varied = _shown(kept, _sizes(kept, scratch, first_of_text), first_of_text)
    histogram = {_name(place): int(number) for place, number in enumerate(counts) if number}
    return Clusters(int(counts.sum()), documents, histogram, largest, most_varied)


def source_pairs(removed: Sequence[Part[RemovedStatistics]], sources: Sequence[Path]) -> list[SourcePair]:
    """Duplicates and their bytes, by source of the removed and of the kept document; most documents first."""
    table: dict[tuple[int, int], SourcePair] = {}
    for part in removed:
        for one, two, reason, number, size in part.statistics["pairs"]:
            new = SourcePair(removed_from=str(sources[one]), kept_in=str(sources[two]), exact=0, near=0, bytes=0)
            row = table.setdefault((one, two), new)
            row["near" if reason == "near" else "exact"] += number
            row["bytes"] += size
    return sorted(table.values(), key=lambda row: -(row["exact"] + row["near"]))


def show_clusters(
    clusters: Sequence[ShownCluster],
    parts: ChunkArrays,
    excerpts: Mapping[str, str],
    sources: Sequence[Path],
) -> list[ClusterEntry]:
    """Clusters, with the places and the beginnings (``excerpts``, by number) of their documents."""
    shown: list[ClusterEntry] = []
    for cluster in clusters:
        members = np.array(cluster.members)
        from_source = parts.sources[parts.chunk_of(members)].tolist()
        positions = parts.gather("positions", members).tolist()
        documents: list[ShownDocument] = [
            {"source": str(sources[source]), "position": position, "text": excerpts[str(number)]}
            for number, source, position in zip(cluster.members, from_source, positions, strict=True)
        ]
        shown.append({"size": cluster.size, "documents": documents})
    return shown


def _sizes(kept: np.ndarray, path: Path, counted: Counted) -> np.ndarray:
    """[n] for every document that stays, the number of counted documents that it is kept for, itself included."""
    sizes = disk_array(path, kept.size, "<i8")
    for here in _batches(kept.size):
        np.add.at(sizes, kept[here][counted(here)], 1)
    return sizes


def _shown(kept: np.ndarray, sizes: np.ndarray, counted: Counted) -> list[ShownCluster]:
    best: list[tuple[int, int]] = []
    for here in _batches(kept.size):
        found = np.asarray(sizes[here])
        top = np.argsort(-found, kind="stable")[:_SHOWN_CLUSTERS]
        best += [(-int(found[place]), int(place) + here.start) for place in top if found[place] > 1]
        best = sorted(best)[:_SHOWN_CLUSTERS]
    members: dict[int, list[int]] = {number: [number] for _, number in best}
    wanted = np.array(sorted(members), np.int64)
    for here in _batches(kept.size):
        for place in np.flatnonzero(np.isin(kept[here], wanted) & counted(here)).tolist():
            others = members[int(kept[here.start + place])]
            if len(others) < _SHOWN_MEMBERS and here.start + place not in others:
                others.append(here.start + place)
    return [ShownCluster(-size, members[number]) for size, number in best]


def _name(place: int) -> str:
    return str(place) if place < 4 else f"{1 << (place - 2)}-{(1 << (place - 1)) - 1}"


def _batches(size: int) -> Iterator[slice]:
    for first in range(0, size, _BATCH):
        yield slice(first, min(first + _BATCH, size))
