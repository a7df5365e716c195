"""What was found: clusters by size, duplicates between sources, a look at some clusters."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from megatron_ko.data.dedup.clusters import disk_array, stored_array
from megatron_ko.data.dedup.corpus import Parts
from megatron_ko.data.jobs import Part

_SHOWN_CLUSTERS = 5
_SHOWN_MEMBERS = 3
_BATCH = 1 << 18


@dataclass(frozen=True)
class Clusters:
    """Clusters of more than one document.

    Attributes:
        number: how many.
        documents: in all of them, kept ones included.
        histogram: number of clusters by size: "2", "3", "4-7", "8-15", ...
        shown: for a few clusters, the largest first, their size and the numbers of some members, the kept one first.
    """

    number: int
    documents: int
    histogram: dict[str, int]
    shown: list[tuple[int, list[int]]]


def describe_clusters(kept_path: Path, scratch: Path) -> Clusters:
    """Count clusters; memory does not grow with the corpus.

    Args:
        kept_path: for every document the one of its cluster that stays.
        scratch: file for the sizes.
    """
    kept = stored_array(kept_path, "<i8")
    sizes = disk_array(scratch, kept.size, "<i8")
    for here in _batches(kept.size):
        np.add.at(sizes, kept[here], 1)
    counts = np.zeros(64, np.int64)
    documents = 0
    largest: list[tuple[int, int]] = []
    for here in _batches(kept.size):
        numbers = np.flatnonzero(sizes[here] > 1)
        found = np.asarray(sizes[here][numbers])
        documents += int(found.sum())
        names = np.where(found < 4, found, np.floor(np.log2(found)).astype(np.int64) + 2)
        counts += np.bincount(names, minlength=64)[:64]
        top = np.argsort(-found, kind="stable")[:_SHOWN_CLUSTERS]
        largest += zip((-found[top]).tolist(), (numbers[top] + here.start).tolist(), strict=True)
        largest = sorted(largest)[:_SHOWN_CLUSTERS]
    histogram = {_name(place): int(number) for place, number in enumerate(counts) if number}
    return Clusters(int(counts.sum()), documents, histogram, _members(kept, largest))


def source_pairs(removed: Sequence[Part], sources: Sequence[Path]) -> list[dict[str, Any]]:
    """Duplicates and their bytes, by the source of what went and of what stayed for it; the most first."""
    table: dict[tuple[int, int], dict[str, Any]] = {}
    for part in removed:
        for one, two, reason, number, size in part.statistics["pairs"]:
            row = table.setdefault(
                (one, two), {"removed_from": str(sources[one]), "kept_in": str(sources[two]), "exact": 0, "near": 0}
            )
            row[reason] += number
            row["bytes"] = row.get("bytes", 0) + size
    return sorted(table.values(), key=lambda row: -row["bytes"])


def sampled_clusters(clusters: Clusters, parts: Parts, written: Sequence[Part], sources: Sequence[Path]) -> list[Any]:
    """The clusters to look at, with where their documents stand and how they begin."""
    excerpts: dict[str, str] = {}
    for part in written:
        excerpts |= part.statistics["excerpts"]
    shown = []
    for size, numbers in clusters.shown:
        members = np.array(numbers)
        from_source = parts.sources[parts.chunk_of(members)].tolist()
        positions = parts.gather("positions", members).tolist()
        documents = [
            {"source": str(sources[source]), "position": position, "text": excerpts[str(number)]}
            for number, source, position in zip(numbers, from_source, positions, strict=True)
        ]
        shown.append({"size": size, "documents": documents})
    return shown


def _members(kept: np.ndarray, largest: Sequence[tuple[int, int]]) -> list[tuple[int, list[int]]]:
    members: dict[int, list[int]] = {number: [number] for _, number in largest}
    wanted = np.array(sorted(members), np.int64)
    for here in _batches(kept.size):
        for place in np.flatnonzero(np.isin(kept[here], wanted)).tolist():
            others = members[int(kept[here.start + place])]
            if len(others) < _SHOWN_MEMBERS and here.start + place not in others:
                others.append(here.start + place)
    return [(-size, members[number]) for size, number in largest]


def _name(place: int) -> str:
    return str(place) if place < 4 else f"{1 << (place - 2)}-{(1 << (place - 1)) - 1}"


def _batches(size: int) -> Iterator[slice]:
    for first in range(0, size, _BATCH):
        yield slice(first, min(first + _BATCH, size))
