"""Attention on a CUDA device, one compiled kernel, against the tiles of a CPU, and what is not seen."""

import pytest
import torch
from torch import Tensor

from megatron_ko.models.attention_kernels import TiledAttention, View, attend_in_blocks
from megatron_ko.models.context_parallel import positions_of

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine"),
]
ROWS, HEADS, WIDTH, LENGTH = 2, 8, 64, 1024
DTYPES = pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-3), (torch.bfloat16, 2e-2)])
VIEWS = {
    "window": (100, False, 1),
    "documents": (None, True, 1),
    "window and documents": (100, True, 1),
    "shared sequence": (None, False, 2),
    "shared sequence, window, documents": (100, True, 2),
}


def view_of(case: str, device: str) -> View:
    window, with_documents, size = VIEWS[case]
    generator = torch.Generator().manual_seed(1)
    documents = (torch.rand(ROWS, LENGTH, generator=generator) < 0.01).cumsum(1).to(device)
    return View(positions_of(LENGTH // size, 0, size), window, documents if with_documents else None)


def random_inputs(groups: int, queries: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(groups)
    shapes = [(ROWS, HEADS, queries, WIDTH), (ROWS, groups, LENGTH, WIDTH), (ROWS, groups, LENGTH, WIDTH)]
    return [torch.randn(shape, generator=generator) for shape in shapes]


@DTYPES
@pytest.mark.parametrize("groups", [2, 8])
@pytest.mark.parametrize("case", VIEWS)
def test_blocks_on_cuda_give_what_tiles_give(case: str, groups: int, dtype: torch.dtype, tolerance: float) -> None:
    here, there = view_of(case, "cpu"), view_of(case, "cuda")
    queries = sum(len(run) for run in here.positions)
    drawn = random_inputs(groups, queries)
    weight = torch.randn(drawn[0].shape, generator=torch.Generator().manual_seed(0))
    on_cpu = [tensor.clone().requires_grad_() for tensor in drawn]
    expected = TiledAttention.apply(*on_cpu, here.positions, here.lowest(torch.device("cpu")), None)
    gradients = torch.autograd.grad((expected * weight).sum(), on_cpu)
    on_cuda = [tensor.to("cuda", dtype).requires_grad_() for tensor in drawn]
    output = attend_in_blocks(*on_cuda, there, None)
    found = torch.autograd.grad((output * weight.to("cuda", dtype)).sum(), on_cuda)
    for ours, theirs in zip((output, *found), (expected, *gradients), strict=True):
        assert ours.dtype == dtype
        assert float((ours.float().cpu() - theirs).norm() / theirs.norm()) < tolerance


@pytest.mark.parametrize("case", ["window", "documents"])
def test_what_is_not_seen_changes_no_bit(case: str) -> None:
    query, key, value = (tensor.to("cuda", torch.bfloat16) for tensor in random_inputs(2, LENGTH))
    view = view_of(case, "cuda")
    before = attend_in_blocks(query, key, value, view, None)
    for place in (0, 127, 128, 700):
        key_2, value_2 = key.clone(), value.clone()
        key_2[:, :, place], value_2[:, :, place] = 5.0, -5.0
        same = (attend_in_blocks(query, key_2, value_2, view, None) == before).all(dim=-1).all(dim=1)  # [b, s]
        lowest = view.lowest(query.device).expand(ROWS, -1)
        at = torch.arange(LENGTH, device="cuda")
        assert same[(lowest > place) | (at < place)].all()
        assert not same[:, place].any()


def test_the_memory_of_a_long_sequence_is_linear() -> None:
    """A mask of single positions would be 4 GiB at 65,536 tokens."""
    inputs = [torch.randn(1, heads, 65536, WIDTH, device="cuda", dtype=torch.bfloat16) for heads in (8, 2, 2)]
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    attend_in_blocks(*inputs, View((range(65536),), 512), None)
    assert torch.cuda.max_memory_allocated() - before < 2**30
