"""Grouped experts against plain matrix products, and against megatron-core's experts: numbers and checkpoints."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from megatron.core import dist_checkpointing
from megatron.core.tensor_parallel import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer import TransformerConfig
from megatron.core.transformer.mlp import MLPSubmodules
from megatron.core.transformer.moe.experts import SequentialMLP
from patience import PATIENCE
from torch.utils.flop_counter import FlopCounterMode

from megatron_ko.config import ParallelConfig
from megatron_ko.models.experts import GroupedExperts, expert_linear
from megatron_ko.parallel.groups import Groups, destroy, initialise
from megatron_ko.parallel.seed import seed_everything
from megatron_ko.parallel.spawn import run_ranks
from megatron_ko.train.tensor_files import InProcessSave

HIDDEN, WIDTH, EXPERTS = 24, 40, 4
LOADS = {"even": [5, 5, 5, 5], "uneven": [7, 3, 4, 6], "one takes most": [1, 40, 0, 2], "nobody": [0, 0, 0, 0]}


@pytest.mark.parametrize("load", LOADS)
def test_products_and_gradients_are_those_of_one_expert_after_the_other(load: str) -> None:
    generator = torch.Generator().manual_seed(3)
    sizes = LOADS[load]
    tokens = torch.randn(sum(sizes), 6, generator=generator, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(4, 3, 6, generator=generator, dtype=torch.float64, requires_grad=True)
    product = expert_linear(tokens, weight, torch.tensor(sizes))
    expected = torch.cat([own @ matrix.T for own, matrix in zip(tokens.split(sizes), weight, strict=True)])
    assert product.shape == (sum(sizes), 3)
    torch.testing.assert_close(product, expected)
    cotangent = torch.randn(product.shape, generator=generator, dtype=torch.float64)
    ours = torch.autograd.grad(product, (tokens, weight), cotangent)
    theirs = torch.autograd.grad(expected, (tokens, weight), cotangent)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("load", ["uneven", "one takes most"])
def test_frozen_experts_cost_no_product(load: str) -> None:
    sizes, flops, gradients = LOADS[load], [], []
    for trained in (True, False):
        tokens, weight = torch.ones(sum(sizes), 6, requires_grad=True), torch.ones(4, 3, 6, requires_grad=trained)
        product = expert_linear(tokens, weight, torch.tensor(sizes))
        with FlopCounterMode(display=False) as counter:
            product.sum().backward()
        flops.append(counter.get_total_flops())
        gradients.append(tokens.grad)
    assert flops[0] == 2 * flops[1] > 0
    assert torch.equal(*gradients)


def settings() -> TransformerConfig:
    return TransformerConfig(
        num_layers=1,
        hidden_size=HIDDEN,
        ffn_hidden_size=WIDTH,
        moe_ffn_hidden_size=WIDTH,
        num_attention_heads=4,
        num_moe_experts=EXPERTS,
        moe_grouped_gemm=True,
        gated_linear_unit=True,
        activation_func=F.silu,
        add_bias_linear=False,
    )


def both(groups: Groups) -> tuple[GroupedExperts, SequentialMLP]:
    """Our experts and megatron-core's, with weights of their own."""
    layers = MLPSubmodules(linear_fc1=ColumnParallelLinear, linear_fc2=RowParallelLinear)
    ours = GroupedExperts(EXPERTS, settings(), groups.pg)
    for weight in ours.parameters():
        torch.nn.init.normal_(weight)
    return ours, SequentialMLP(EXPERTS, settings(), layers, pg_collection=groups.pg)


def saved(experts: Any) -> dict[str, Any]:
    state: dict[str, Any] = experts.sharded_state_dict(prefix="mlp.", sharded_offsets=((0, 0, 1),))
    return state


def compare(folder: Path) -> None:
    """Write ours, read it into theirs: the names and shapes fit. Then both compute the same."""
    groups = initialise(ParallelConfig(), timeout_s=PATIENCE)
    seed_everything(1, groups)
    ours, theirs = both(groups)
    (folder / "ours").mkdir()
    dist_checkpointing.save(saved(ours), str(folder / "ours"), InProcessSave())
    loaded = dist_checkpointing.load(saved(theirs), str(folder / "ours"))
    theirs.load_state_dict({key.removeprefix("mlp."): value for key, value in loaded.items()})
    counts = torch.tensor([3, 0, 9, 4])
    tokens, shares = torch.randn(16, HIDDEN, requires_grad=True), torch.rand(16, requires_grad=True)
    results = []
    for experts in (ours, theirs):
        output, bias = experts(tokens, counts, shares)
        assert bias is None
        gradients = torch.autograd.grad(output.square().sum(), (tokens, shares, *experts.parameters()))
        results.append((output, *gradients[:2], gradients[2:]))
    for one, other in zip(results[0][:3], results[1][:3], strict=True):
        torch.testing.assert_close(one, other)
    first, second = results[0][3]
    torch.testing.assert_close(first, torch.stack(results[1][3][0::2]))
    torch.testing.assert_close(second, torch.stack(results[1][3][1::2]))

    (folder / "theirs").mkdir()
    fresh, _ = both(groups)
    dist_checkpointing.save(saved(theirs), str(folder / "theirs"), InProcessSave())
    back = dist_checkpointing.load(saved(fresh), str(folder / "theirs"))
    for name, weight in ours.named_parameters():
        assert back[f"mlp.{name}"].equal(weight), name
    destroy()


def test_the_same_numbers_and_checkpoints_as_megatron_cores_experts(tmp_path: Path) -> None:
    assert run_ranks(compare, 1, (tmp_path,), threads=1) == 0
