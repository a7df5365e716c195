"""Tiled attention against a dense mask, for windows, documents, grouped heads and queries in pieces."""

import math
import warnings
from typing import Any

import pytest
import torch
import torch._dynamo
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from megatron_ko.models import attention_kernels as kernels
from megatron_ko.models.attention_kernels import TiledAttention, View, attend, attend_in_blocks, document_starts, tiles
from megatron_ko.models.context_parallel import positions_of

WIDTH = 8


def visible(length: int, window: int | None, documents: Tensor | None) -> Tensor:
    """Not later, within the window, of the same document; [1 or b, t, t] from document numbers that never fall."""
    place = torch.arange(length)
    mask = place.unsqueeze(1) >= place
    if window is not None:
        mask &= place.unsqueeze(1) - place <= window
    return mask.unsqueeze(0) if documents is None else mask & (documents.unsqueeze(2) == documents.unsqueeze(1))


def dense(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    """Softmax attention of [b, n, s, d] under [b, s, t]."""
    repeats = query.shape[1] // key.shape[1]
    scores = query @ key.repeat_interleave(repeats, 1).transpose(2, 3) / math.sqrt(WIDTH)
    weights = scores.masked_fill(~mask.unsqueeze(1), -math.inf).softmax(-1)
    return weights @ value.repeat_interleave(repeats, 1)


def random_tensors(rows: int, heads: int, groups: int, queries: int, keys: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(queries * 1000 + keys * 10 + groups)
    shapes = [(rows, heads, queries, WIDTH), (rows, groups, keys, WIDTH), (rows, groups, keys, WIDTH)]
    return [torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True) for shape in shapes]


def random_documents(rows: int, length: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(rows, length, generator=generator) < 0.1).cumsum(1)


# window, documents, ranks that share the sequence
CASES = {
    "window": (40, False, 1),
    "narrow window": (1, False, 1),
    "nothing but itself": (0, False, 1),
    "documents": (None, True, 1),
    "documents and window": (17, True, 1),
    "split over 2": (None, False, 2),
    "split over 3, window, documents": (33, True, 3),
}


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("case", CASES)
def test_tiles_give_what_a_dense_mask_gives(case: str, groups: int) -> None:
    window, with_documents, size = CASES[case]
    length = 300 // (2 * size) * 2 * size  # more than two tiles, and not a multiple of one
    documents = random_documents(2, length, 3) if with_documents else None
    mask = visible(length, window, documents)
    for rank in range(size):
        view = View(positions_of(length // size, rank, size), window, documents)
        places = torch.tensor([place for run in view.positions for place in run])
        query, key, value = random_tensors(2, 4, groups, len(places), length)
        output = attend(query, key, value, view, None)
        expected = dense(query, key, value, mask[:, places])
        torch.testing.assert_close(output, expected)
        weight = torch.randn_like(output)
        ours = torch.autograd.grad((output * weight).sum(), (query, key, value))
        theirs = torch.autograd.grad((expected * weight).sum(), (query, key, value))
        torch.testing.assert_close(ours, theirs)


@settings(max_examples=60)
@given(
    length=st.integers(1, 40).map(lambda number: 12 * number),
    window=st.none() | st.integers(0, 60),
    seed=st.none() | st.integers(0, 1000),
    size=st.sampled_from([1, 2, 3]),
)
def test_masks_never_leak_and_every_query_sees_itself(
    length: int, window: int | None, seed: int | None, size: int
) -> None:
    documents = None if seed is None else random_documents(2, length, seed)
    expected = visible(length, window, documents)
    seen = torch.zeros_like(expected)
    for rank in range(size):
        view = View(positions_of(length // size, rank, size), window, documents)
        places = view.places(torch.device("cpu"))
        for tile in tiles(view.positions, view.lowest(torch.device("cpu"))):
            own = places[tile.queries]
            mask = torch.ones(1, tile.keys.stop - tile.keys.start, dtype=torch.bool) if tile.mask is None else tile.mask
            assert mask.any(dim=1).all(), "a query without a key"
            assert mask.any(dim=0)[0] and mask.any(dim=0)[-1], "keys that nobody sees"
            assert mask[torch.arange(len(own)), own - tile.keys.start].all(), "a query that does not see itself"
            for row in range(len(seen))[tile.rows]:
                block = seen[row, own[0] : own[-1] + 1, tile.keys]
                assert not block.any(), "tiles overlap"
                block |= mask
    assert seen.equal(expected)


@pytest.mark.parametrize("window", [None, 40])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_not_seen_changes_no_bit(window: int | None, dtype: torch.dtype) -> None:
    query, key, value = (tensor.detach().to(dtype) for tensor in random_tensors(1, 4, 2, 300, 300))
    documents = torch.zeros(1, 300, dtype=torch.int64)
    documents[:, 200:] = 1
    view = View((range(300),), window, documents)
    before = attend(query, key, value, view, None)
    for place in (0, 127, 128, 150):
        other_key, other_value = key.clone(), value.clone()
        other_key[:, :, place], other_value[:, :, place] = 50.0, -50.0
        same = (attend(query, other_key, other_value, view, None) == before).all(dim=-1).all(dim=1)[0]
        end = 200 if window is None else min(200, place + window + 1)
        assert same[:place].all() and same[end:].all() and not same[place:end].any()


@pytest.mark.parametrize(("window", "with_documents"), [(40, False), (None, True), (17, True)])
def test_flex_attention_gives_the_same(window: int | None, with_documents: bool, monkeypatch: Any) -> None:
    """The branch of CUDA, here without its compiler: the same masks by position, batch row and group."""
    monkeypatch.setattr(kernels, "_compiled", lambda function: function)
    for size in (1, 2):
        documents = random_documents(2, 300, 5) if with_documents else None
        view = View(positions_of(300 // size, size - 1, size), window, documents)
        inputs = [tensor.detach() for tensor in random_tensors(2, 4, 2, 300 // size, 300)]
        with torch._dynamo.config.patch(disable=False), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it advises to compile
            blocks = attend_in_blocks(*inputs, view, 0.3)
        torch.testing.assert_close(blocks, attend(*inputs, view, 0.3))


def test_documents_are_runs_of_equal_numbers() -> None:
    numbers = torch.tensor([[5, 5, 1, 1, 5, 5], [0, 0, 0, 0, 0, 0], [1, 2, 3, 4, 5, 6]])
    assert document_starts(numbers).tolist() == [[0, 0, 2, 2, 4, 4], [0] * 6, [0, 1, 2, 3, 4, 5]]


def test_no_mask_is_kept_for_the_backward_pass() -> None:
    """But inputs, output, a bound and a sum for each query."""
    length, kept = 4 * kernels._TILE, 0

    def keep(tensor: Tensor) -> Tensor:
        nonlocal kept
        kept += tensor.numel()
        return tensor

    inputs = random_tensors(1, 2, 1, length, length)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        TiledAttention.apply(*inputs, (range(length),), torch.zeros(1, length, dtype=torch.int64), None)
    queries, keys, values = (tensor.numel() for tensor in inputs)
    assert kept == 2 * queries + keys + values + length + 2 * length
