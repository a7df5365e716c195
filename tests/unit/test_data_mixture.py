"""A mixture that changes between sessions goes on in every source where it was left."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from megatron_ko.data.training.origins import MixtureDataset, Reading


class _Blend:
    """What a mixture of megatron-core tells: sample n of it is sample ``dataset_sample_index[n]`` of one dataset."""

    def __init__(self, order: list[int], datasets: int) -> None:
        self.dataset_index = np.array(order, dtype=np.int64)
        self.dataset_sample_index = np.array([order[:n].count(order[n]) for n in range(len(order))])
        self.datasets = [_Numbered() for _ in range(datasets)]


class _Numbered:
    def __getitem__(self, index: int) -> dict[str, int]:
        return {"number": index}


@given(
    sessions=st.lists(
        st.tuples(st.sets(st.sampled_from("abc"), min_size=1), st.integers(0, 6), st.integers(0, 99)),
        min_size=1,
        max_size=5,
    )
)
def test_sources_go_on_where_they_were_left_whatever_becomes_of_the_mixture(
    sessions: list[tuple[set[str], int, int]],
) -> None:
    """Sessions read some samples of some sources in some order: of each source the first ones, each once, in order."""
    read: dict[str, list[int]] = {}
    before = Reading()
    for names, count, seed in sessions:
        keys = sorted(names)
        order = np.random.default_rng(seed).integers(len(keys), size=before.samples + count).tolist()
        blend = _Blend(order, len(keys)) if len(keys) > 1 else _Numbered()
        data = MixtureDataset(blend, keys, keys, before)
        indices = range(before.samples, before.samples + count)
        for index in indices:
            key = keys[order[index] if len(keys) > 1 else 0]
            read.setdefault(key, []).append(data[index]["number"])
        counted = data.count_by_dataset(indices)
        merged = {key: before.by_dataset.get(key, 0) + counted.get(key, 0) for key in {*before.by_dataset, *counted}}
        before = Reading(before.samples + count, merged)
    assert read == {key: list(range(len(numbers))) for key, numbers in read.items()}
    assert {key: count for key, count in before.by_dataset.items() if count} == {k: len(v) for k, v in read.items()}
