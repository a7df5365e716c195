"""Which rows share a training sample: streaming best fit, a function of lengths, order and capacity alone.

A row goes to the open pack that it fills best. When no pack has room and as many are open as may be, the fullest one is
closed. Unlike packing in order of decreasing length this keeps the mixture: rows of one kind do not end up together.
"""

from bisect import bisect_left, insort
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

OPEN_PACKS = 64


@dataclass(frozen=True)
class PackPlan:
    """The packs of an epoch.

    Attributes:
        rows: [n] numbers of rows, pack after pack.
        starts: [p + 1] where each pack begins in ``rows``, and their number.
        missing: [p] positions that each pack leaves empty.
    """

    rows: np.ndarray
    starts: np.ndarray
    missing: np.ndarray

    def __len__(self) -> int:
        """Number of packs."""
        return len(self.missing)

    def pack(self, number: int) -> np.ndarray:
        """The rows of a pack, in the order in which they lie there."""
        return self.rows[self.starts[number] : self.starts[number + 1]]


def plan_packs(lengths: np.ndarray, capacity: int, seed: int, epoch: int) -> PackPlan:
    """Shuffle rows by (seed, epoch), pack them, and shuffle the packs, which are closed in order of fullness.

    Args:
        lengths: [n] positions that each row takes, at most ``capacity``.
        capacity: positions of a pack.
        seed, epoch: decide the order.
    """
    random = np.random.Generator(np.random.PCG64([seed, epoch]))
    packs = list(fill_packs(lengths, random.permutation(len(lengths)), capacity))
    packs = [packs[number] for number in random.permutation(len(packs))]
    sizes = np.array([len(pack) for pack in packs], dtype=np.int64)
    rows = np.array([row for pack in packs for row in pack], dtype=np.int64)
    starts = np.concatenate(([0], np.cumsum(sizes)))
    held = np.add.reduceat(lengths[rows].astype(np.int64), starts[:-1]) if len(rows) else np.zeros(0, np.int64)
    return PackPlan(rows, starts, capacity - held)


def fill_packs(lengths: np.ndarray, order: np.ndarray, capacity: int) -> Iterator[list[int]]:
    """Packs of rows, each as soon as it is closed.

    Args:
        lengths: [n] positions that each row takes.
        order: in which rows come.
        capacity: positions of a pack.
    """
    room: list[tuple[int, int]] = []  # (free positions, number) of the open packs, in increasing order
    held: dict[int, list[int]] = {}
    opened = 0
    sizes = lengths.tolist()
    for row in order.tolist():
        size = sizes[row]
        assert size <= capacity, "checked with the data"
        place = bisect_left(room, (size, -1))
        if place < len(room):
            free, pack = room.pop(place)
        else:
            if len(room) == OPEN_PACKS:
                yield held.pop(room.pop(0)[1])
            free, pack = capacity, opened
            held[pack], opened = [], opened + 1
        held[pack].append(row)
        if free == size:
            yield held.pop(pack)
        else:
            insort(room, (free - size, pack))
    yield from (held[pack] for _, pack in room)
