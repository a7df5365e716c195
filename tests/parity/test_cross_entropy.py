"""The output layer with its loss against PyTorch's cross entropy: in one piece and in many, on one rank and on two."""

import pytest
import torch
import torch.nn.functional as F
from harness import collect_from_ranks
from patience import PATIENCE
from torch.utils.flop_counter import FlopCounterMode

from megatron_ko.config import ParallelConfig
from megatron_ko.models.cross_entropy import linear_cross_entropy
from megatron_ko.models.vocabulary import Vocabulary
from megatron_ko.parallel.groups import destroy, initialise

SEQUENCE, BATCH, HIDDEN, VOCABULARY = 12, 3, 16, 61
ROWS = 64  # the last three are padding, with weights of their own that must not matter
ONE_TOKEN, SEVEN_TOKENS, ALL = 1, 4 * 7 * ROWS // 2, 1 << 30
Result = dict[str, torch.Tensor]


def inputs(dtype: torch.dtype, scale: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Hidden states [s, b, h], weight [v, h], labels [b, s], and an uneven gradient of the losses [b, s]."""
    draw = torch.Generator().manual_seed(3)
    hidden = torch.randn(SEQUENCE, BATCH, HIDDEN, generator=draw) * scale
    weight = torch.randn(ROWS, HIDDEN, generator=draw)
    labels = torch.randint(VOCABULARY, (BATCH, SEQUENCE), generator=draw)
    labels[0, :2] = torch.tensor([0, VOCABULARY - 1])
    return hidden.to(dtype), weight.to(dtype), labels, torch.rand(BATCH, SEQUENCE, generator=draw).round(decimals=1)


def expected(dtype: torch.dtype, scale: float) -> Result:
    hidden, weight, labels, gradient = inputs(dtype, scale)
    hidden.requires_grad_(), weight.requires_grad_()
    logits = (hidden @ weight[:VOCABULARY].t()).float()
    losses = F.cross_entropy(logits.permute(1, 2, 0), labels, reduction="none")
    losses.backward(gradient)
    assert hidden.grad is not None and weight.grad is not None
    return {"losses": losses.detach(), "hidden": hidden.grad, "weight": weight.grad}


def ours(parallel: ParallelConfig, limit: int, dtype: torch.dtype, scale: float) -> Result:
    groups = initialise(parallel, timeout_s=PATIENCE)
    hidden, weight, labels, gradient = inputs(dtype, scale)
    weight = weight.chunk(groups.tp_size)[groups.tp_rank].clone().requires_grad_()
    if parallel.sequence_parallel:
        hidden = hidden.chunk(groups.tp_size)[groups.tp_rank].clone()
    hidden.requires_grad_()
    losses = linear_cross_entropy(
        hidden,
        weight,
        labels,
        Vocabulary(VOCABULARY, groups.pg.tp),
        sequence_parallel=parallel.sequence_parallel,
        limit=limit,
    )
    losses.backward(gradient)
    destroy()
    assert hidden.grad is not None and weight.grad is not None
    return {"losses": losses.detach(), "hidden": hidden.grad, "weight": weight.grad}


def cases(parallel: ParallelConfig) -> list[tuple[tuple[int, torch.dtype, float], Result]]:
    """Several limits, types and sizes of logits in one world."""
    settings = [(limit, torch.float32, scale) for limit in (ONE_TOKEN, SEVEN_TOKENS, ALL) for scale in (1.0, 50.0)]
    settings += [(limit, torch.bfloat16, 1.0) for limit in (SEVEN_TOKENS, ALL)]
    return [(setting, ours(parallel, *setting)) for setting in settings]


@pytest.mark.parametrize("tensor, sequence_parallel", [(1, False), (2, False), (2, True)])
def test_equals_pytorch(tensor: int, sequence_parallel: bool) -> None:
    parallel = ParallelConfig(tensor=tensor, sequence_parallel=sequence_parallel)
    ranks = collect_from_ranks(cases, tensor, parallel)
    for parts in zip(*ranks, strict=True):
        limit, dtype, scale = parts[0][0]
        theirs = expected(dtype, scale)
        results = [result for _, result in parts]
        hidden = torch.cat([part["hidden"] for part in results]) if sequence_parallel else results[0]["hidden"]
        weight = torch.cat([part["weight"] for part in results])
        found = [{**part, "hidden": hidden, "weight": weight} for part in results]
        allowed = 1e-5 if dtype == torch.float32 else 2e-2
        for name, value in ((name, rank[name]) for rank in found for name in theirs):
            difference = torch.linalg.vector_norm((value - theirs[name]).float())
            relative = float(difference / torch.linalg.vector_norm(theirs[name].float()))
            assert relative < allowed, f"{name} at limit {limit}, {dtype}, scale {scale}: {relative:.1e}"


def only_padding_on_one_rank() -> tuple[torch.Tensor, torch.Tensor]:
    """Three token ids on two ranks with four rows each: the second rank holds padding alone."""
    groups = initialise(ParallelConfig(tensor=2), timeout_s=PATIENCE)
    weight = torch.ones(4, 2).requires_grad_()
    hidden, labels = torch.ones(2, 1, 2), torch.tensor([[0, 2]])
    vocabulary = Vocabulary(3, groups.pg.tp)
    losses = linear_cross_entropy(hidden, weight, labels, vocabulary, sequence_parallel=False, limit=ALL)
    losses.sum().backward()
    destroy()
    assert weight.grad is not None
    return losses.detach(), weight.grad


def test_a_rank_may_hold_padding_alone() -> None:
    (losses, first), (same, second) = collect_from_ranks(only_padding_on_one_rank, 2)
    torch.testing.assert_close(losses, torch.full((1, 2), 3.0).log())
    assert torch.equal(losses, same) and torch.count_nonzero(first[:3]) == 6
    assert not first[3].any() and not second.any()


def products_of_a_backward_pass(limit: int, frozen: bool) -> tuple[int, torch.Tensor]:
    """Its floating-point operations, and the gradient of the hidden states."""
    groups = initialise(ParallelConfig(), timeout_s=PATIENCE)
    hidden, weight, labels, gradient = inputs(torch.bfloat16, 1.0)  # a sum in place, as in fp32, is not counted
    hidden.requires_grad_(), weight.requires_grad_(not frozen)
    vocabulary = Vocabulary(VOCABULARY, groups.pg.tp)
    losses = linear_cross_entropy(hidden, weight, labels, vocabulary, sequence_parallel=False, limit=limit)
    with FlopCounterMode(display=False) as counter:
        losses.backward(gradient)
    destroy()
    assert hidden.grad is not None
    return counter.get_total_flops(), hidden.grad


@pytest.mark.parametrize("limit", [SEVEN_TOKENS, ALL])
def test_a_frozen_weight_costs_no_product(limit: int) -> None:
    """One product of the backward pass is for the weight; in pieces, one of them computes the logits again."""
    trained, frozen = (collect_from_ranks(products_of_a_backward_pass, 1, limit, each)[0] for each in (False, True))
    one = 2 * SEQUENCE * BATCH * HIDDEN * ROWS
    assert trained[0] - frozen[0] == one
    assert trained[1].equal(frozen[1])
