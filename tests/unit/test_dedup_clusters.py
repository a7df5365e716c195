"""Clusters and the files that they are made from."""

from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from megatron_ko.data.dedup.arrays import open_arrays, write_arrays
from megatron_ko.data.dedup.unionfind import roots, union

PAIRS = st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), max_size=60)


def components(pairs: list[tuple[int, int]], size: int) -> list[int]:
    """Smallest member reachable from each number, by walking."""
    near: dict[int, set[int]] = {number: {number} for number in range(size)}
    for a, b in pairs:
        near[a].add(b)
        near[b].add(a)
    smallest = []
    for number in range(size):
        seen, waiting = {number}, [number]
        while waiting:
            for other in near[waiting.pop()] - seen:
                seen.add(other)
                waiting.append(other)
        smallest.append(min(seen))
    return smallest


@given(PAIRS, st.integers(1, 5), st.randoms())
def test_clusters_are_the_connected_components(pairs: list[tuple[int, int]], batches: int, draw: object) -> None:
    """Whatever the order of the pairs and however they are cut into batches."""
    expected = components(pairs, 31)
    draw.shuffle(pairs)  # type: ignore[attr-defined]
    parent = np.arange(31)
    for batch in range(batches):
        some = np.array(pairs[batch::batches], np.int64).reshape(-1, 2)
        union(parent, some[:, 0], some[:, 1])
    assert roots(parent, np.arange(31)).tolist() == expected


def test_a_long_chain_is_one_cluster() -> None:
    number = 100_000
    order = np.random.default_rng(0).permutation(number - 1)
    parent = np.arange(number)
    for batch in np.array_split(order, 7):
        union(parent, batch, batch + 1)
    assert not roots(parent, np.arange(number)).any()


def test_arrays_come_back_as_they_were(tmp_path: Path) -> None:
    arrays = {
        "empty": np.empty(0, np.float64),
        "matrix": np.arange(12, dtype=np.uint64).reshape(3, 4)[:, ::2],
        "bytes": np.frombuffer("가나".encode(), np.uint8),
        "none": np.empty((5, 0), np.int32),
    }
    write_arrays(tmp_path / "a", arrays)
    write_arrays(tmp_path / "b", arrays)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    found = open_arrays(tmp_path / "a")
    assert list(found) == list(arrays)
    for name, array in arrays.items():
        assert found[name].dtype == array.dtype and np.array_equal(found[name], array)
        assert found[name].ctypes.data % 64 == 0 or not array.size
