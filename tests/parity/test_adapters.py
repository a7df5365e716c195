"""Adapters: every layout gives the losses and gradients of one rank, and one rank gives those of peft."""

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from harness import Outcome, collect_from_ranks, micro_batches, relative_difference, tiny_config, train_all
from oracle import to_transformers
from patience import PATIENCE
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor

from megatron_ko.config import ModelConfig, RunConfig
from megatron_ko.models.adapter import attach_adapters
from megatron_ko.models.blueprint import Blueprint
from megatron_ko.models.build import build_model
from megatron_ko.objectives import build_objective
from megatron_ko.parallel.groups import initialise
from megatron_ko.parallel.seed import seed_everything
from megatron_ko.plan.params import trained_parameters
from megatron_ko.train.engine import build_engine
from megatron_ko.train.step import train_step

STEPS = 3
ADAPTERS: dict[str, dict[str, Any]] = {
    "lora": {"rank": 4, "alpha": 6.0},
    "dora": {"kind": "dora", "rank": 4, "alpha": 6.0},
}
SEQUENCE = {"sequence_parallel": True}
# layout -> ranks, axes, sections
QUICK: dict[str, tuple[int, dict[str, Any], dict[str, Any]]] = {
    "tensor 2": (2, {"tensor": 2}, {}),
    "tensor 2, sequence": (2, {"tensor": 2, **SEQUENCE}, {}),
    "context 2": (2, {"context": 2}, {}),
    "pipeline 2": (2, {"pipeline": 2}, {}),
    "data 2": (2, {}, {}),
}
SLOW: dict[str, tuple[int, dict[str, Any], dict[str, Any]]] = {
    "pipeline 4": (4, {"pipeline": 4}, {}),
    "pipeline 2, interleaved": (2, {"pipeline": 2, "virtual_pipeline": 2}, {}),
    "tensor 2, pipeline 2": (4, {"tensor": 2, "pipeline": 2, **SEQUENCE}, {}),
    "data 2, overlapped": (2, {"overlap_grad_reduce": True, "overlap_param_gather": True}, {}),
    "data 2, whole optimizers": (2, {"distributed_optimizer": False}, {}),
    "full recomputation": (1, {}, {"training": {"micro_batch_size": 1, "recompute": "full"}}),
    "recomputation, pipeline 2": (2, {"pipeline": 2}, {"training": {"micro_batch_size": 1, "recompute": "full"}}),
}


def configurations(parallel: dict[str, Any], sections: dict[str, Any]) -> list[RunConfig]:
    """One for each kind of adapter."""
    fields = {"training": {"micro_batch_size": 1}, "objective": {"kind": "sft"}, **sections}
    return [tiny_config(parallel, **fields, adapter=adapter) for adapter in ADAPTERS.values()]


@pytest.fixture(scope="module")
def alone() -> list[Outcome]:
    """One rank, in the order of ``ADAPTERS``."""
    return train_all(configurations({}, {}), 1, STEPS)


def compare(layout: tuple[int, dict[str, Any], dict[str, Any]], alone: list[Outcome]) -> None:
    world, parallel, sections = layout
    found = train_all(configurations(parallel, sections), world, STEPS)
    for name, one, other in zip(ADAPTERS, alone, found, strict=True):
        assert other.losses == pytest.approx(one.losses, rel=1e-5), name
        assert other.grad_norms == pytest.approx(one.grad_norms, rel=1e-5), name
        assert one.gradients.keys() == other.gradients.keys() and len(one.gradients) >= 8
        for parameter, gradient in one.gradients.items():
            assert relative_difference(other.gradients[parameter], gradient) < 1e-5, (name, parameter)


@pytest.mark.parametrize("layout", QUICK)
def test_a_layout_gives_the_losses_and_gradients_of_one_rank(layout: str, alone: list[Outcome]) -> None:
    compare(QUICK[layout], alone)


@pytest.mark.slow
@pytest.mark.parametrize("layout", SLOW)
def test_every_other_layout_does_so_too(layout: str, alone: list[Outcome]) -> None:
    compare(SLOW[layout], alone)


EXPERTS = {"family": "mixtral", "moe": {"num_experts": 4, "top_k": 2, "aux_loss_coeff": 0.02}}
BIASED = {"family": "qwen3_moe", "moe": {"num_experts": 4, "top_k": 2, "score": "sigmoid", "expert_bias": True}}


@pytest.mark.slow
@pytest.mark.parametrize("world", [2, 4])
def test_experts(world: int) -> None:
    parallel = {"expert": 2, **({"tensor": 2, "expert_tensor": 1, **SEQUENCE} if world == 4 else {})}
    adapter = {"rank": 4}
    sections = {"training": {"micro_batch_size": 1}, "model": EXPERTS, "adapter": adapter}
    (one,) = train_all([tiny_config({}, **sections)], 1, STEPS)
    (other,) = train_all([tiny_config(parallel, **sections)], world, STEPS)
    assert other.losses == pytest.approx(one.losses, rel=1e-5)
    assert other.grad_norms == pytest.approx(one.grad_norms, rel=1e-5)
    assert len(one.gradients) == 8
    for parameter, gradient in one.gradients.items():
        assert relative_difference(other.gradients[parameter], gradient) < 1e-5, parameter


PARTS = {
    "self_attention.linear_qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "self_attention.linear_proj": ("self_attn.o_proj",),
    "mlp.linear_fc1": ("mlp.gate_proj", "mlp.up_proj"),
    "mlp.linear_fc2": ("mlp.down_proj",),
}


@pytest.mark.parametrize("kind", ADAPTERS)
def test_losses_and_gradients_are_those_of_peft(kind: str) -> None:
    """peft has an adapter for each part of our matrices. With the same A in all of them it computes what ours does, and
    the gradient of our A is the sum of theirs."""
    config = tiny_config({}, adapter=ADAPTERS[kind], optim={"clip_grad": 1e6}, model={"init_std": 0.2})
    (ours,) = train_all([config], 1, 1)
    peer = in_peft(config, ours.weights)
    loss = peft_loss(peer, config)
    assert ours.losses[0] == pytest.approx(float(loss.detach()), rel=1e-5)
    loss.backward()
    compared = 0
    for name, gradient in ours.gradients.items():
        where, leaf = name.removeprefix("decoder.layers.").split(".adapter.")
        for layer in range(config.model.num_layers):
            modules = [peer.get_submodule(f"base_model.model.model.layers.{layer}.{part}") for part in PARTS[where]]
            theirs = [gradient_of(module, leaf) for module in modules]
            whole = torch.stack(theirs).sum(0) if leaf == "a" else joined(where, theirs, config.model)
            assert relative_difference(gradient[layer], whole) < 1e-5, (name, layer)
            compared += 1
    assert compared == 4 * config.model.num_layers * (3 if kind == "dora" else 2)


def in_peft(config: RunConfig, weights: dict[str, Tensor]) -> PeftModel:
    """peft's adapters on transformers' model, all with our numbers."""
    adapter, model = config.adapter, config.model
    assert adapter is not None
    names = [part.rpartition(".")[2] for parts in PARTS.values() for part in parts]
    options = LoraConfig(
        r=adapter.rank, lora_alpha=adapter.alpha, target_modules=names, use_dora=adapter.kind == "dora"
    )
    peer = get_peft_model(to_transformers(model, weights), options)
    for layer in range(model.num_layers):
        for where, parts in PARTS.items():
            ours = {
                leaf: weights.get(f"decoder.layers.{where}.adapter.{leaf}") for leaf in ("a", "b", "magnitude_change")
            }
            modules = [peer.get_submodule(f"base_model.model.model.layers.{layer}.{part}") for part in parts]
            for module, b in zip(modules, split(where, ours["b"][layer], model), strict=True):
                module.lora_A["default"].weight.data.copy_(ours["a"][layer])
                module.lora_B["default"].weight.data.copy_(b)
            if ours["magnitude_change"] is not None:
                changes = split(where, ours["magnitude_change"][layer][:, None], model)
                for module, change in zip(modules, changes, strict=True):
                    norms = module.base_layer.weight.norm(dim=1)
                    module.lora_magnitude_vector["default"].weight.data.copy_(norms + change[:, 0])
    return peer


def peft_loss(peer: PeftModel, config: RunConfig) -> Tensor:
    """Of the first step, over all samples."""
    total, count = torch.zeros(()), 0.0
    for batch in micro_batches(config, SimpleNamespace(dp_rank=0, dp_size=1, cp_rank=0, cp_size=1), 0):
        logits = peer(batch.tokens).logits.flatten(0, 1)
        losses = torch.nn.functional.cross_entropy(logits, batch.labels.flatten(), reduction="none")
        total = total + (losses * batch.loss_mask.flatten()).sum()
        count += float(batch.loss_mask.sum())
    return total / count


def gradient_of(module: torch.nn.Module, leaf: str) -> Tensor:
    name = {"a": "lora_A", "b": "lora_B", "magnitude_change": "lora_magnitude_vector"}[leaf]
    found: Tensor = module.get_submodule(f"{name}.default").weight.grad
    return found


def split(where: str, rows: Tensor, model: ModelConfig) -> list[Tensor]:
    """The rows of our matrix that belong to each of peft's: see ``oracle._attention``."""
    if where != "self_attention.linear_qkv":
        return [*rows.chunk(len(PARTS[where]))]
    groups, width = model.query_groups, model.kv_channels
    heads = model.num_attention_heads // groups
    parts = rows.view(groups, heads + 2, width, -1).split([heads, 1, 1], dim=1)
    return [part.reshape(-1, rows.shape[1]) for part in parts]


def joined(where: str, parts: list[Tensor], model: ModelConfig) -> Tensor:
    """The inverse of ``split``."""
    if where != "self_attention.linear_qkv":
        return torch.cat(parts)
    groups, width = model.query_groups, model.kv_channels
    whole = torch.cat([part.reshape(groups, -1, width, *part.shape[1:]) for part in parts], dim=1)
    return whole.flatten(0, 2)


@dataclass(frozen=True)
class Training:
    """What training adapters did to one rank.

    Attributes:
        changed: names of parameters that changed.
        buffers: numbers that gradients are summed in.
        moments: numbers in the optimizer, without masters.
        adapters: numbers that the adapters have.
        losses: of the first step, and of the first step without adapters.
    """

    changed: list[str]
    buffers: int
    moments: int
    adapters: int
    losses: tuple[float, float]


def train_and_look(config: RunConfig) -> Training:
    """Inside a rank: two steps, from the start itself."""
    groups = initialise(config.parallel, timeout_s=PATIENCE)
    seed_everything(config.run.seed, groups)
    chunks = build_model(Blueprint.of(config), groups, config.run.seed)
    objective = build_objective(config.objective, groups)
    batches = micro_batches(config, groups, 0)
    whole = train_step(build_engine(config, chunks, groups, objective), batches, lr=0.0, weight_decay=0.0)
    chunks = build_model(Blueprint.of(config), groups, config.run.seed)
    assert config.adapter is not None
    attach_adapters(chunks, config.adapter, groups, config.run.seed)
    before = {name: value.clone() for name, value in chunks[0].state_dict().items() if isinstance(value, Tensor)}
    engine = build_engine(config, chunks, groups, objective)
    first = train_step(engine, batches, lr=0.0, weight_decay=0.0)
    for _ in range(2):
        train_step(engine, batches, lr=1e-2, weight_decay=0.1)
    after = chunks[0].state_dict()
    (wrapped,) = engine.model
    states = [state for part in engine.optimizer.chained_optimizers for state in part.optimizer.state.values()]
    return Training(
        [name for name, value in before.items() if not torch.equal(value, after[name])],
        sum(buffer.grad_data.numel() for buffer in [*wrapped.buffers, *wrapped.expert_parallel_buffers]),
        sum(state[name].numel() for state in states for name in ("exp_avg", "exp_avg_sq")),
        sum(parameter.numel() for parameter in chunks[0].parameters() if parameter.requires_grad),
        (first.loss, whole.loss),
    )


@pytest.mark.parametrize("case", ["fp32", "bf16", "biased experts"])
@pytest.mark.parametrize("kind", ADAPTERS)
def test_only_adapters_are_trained_and_cost_memory(case: str, kind: str) -> None:
    model = BIASED if case == "biased experts" else {}
    targets = {"targets": ("qkv", "proj")} if model and kind == "dora" else {}
    precision = {"dtype": "bf16" if case == "bf16" else "fp32"}
    config = tiny_config({}, adapter={**ADAPTERS[kind], **targets}, model=model, precision=precision)
    (found,) = collect_from_ranks(train_and_look, 1, config)
    assert found.losses[0] == found.losses[1], "B is 0, and the loss that of the start, to the bit"
    assert len(found.changed) == (2 if targets else 4) * 4 * (3 if kind == "dora" else 2)
    assert all("adapters." in name for name in found.changed)
    assert config.adapter is not None
    assert found.adapters == trained_parameters(config)
    assert found.moments == 2 * found.adapters
    assert found.adapters <= found.buffers < found.adapters + 64 * len(found.changed) + 128
