"""The gradient norm is that of float64 at every layout, so layouts do not drift apart through clipping."""

import pytest
import torch
from harness import collect_from_ranks, gradients_of, micro_batches, tiny_config
from oracle import Pieces, assemble

from megatron_ko.config import RunConfig
from megatron_ko.models.blueprint import Blueprint
from megatron_ko.models.build import build_model
from megatron_ko.objectives import LanguageModelling
from megatron_ko.parallel.groups import destroy, initialise
from megatron_ko.parallel.seed import seed_everything
from megatron_ko.train.engine import build_engine
from megatron_ko.train.gradient_norm import accurate_norm
from megatron_ko.train.step import train_step

STEPS = 12
LAYOUTS = {
    "one rank": (1, {}),
    "tensor 2": (2, {"tensor": 2}),
    "pipeline 2": (2, {"pipeline": 2}),
    "data 2": (2, {"distributed_optimizer": True}),
}


@pytest.mark.parametrize("power", [1, 3, 5])
@pytest.mark.parametrize("length", [1, 1023, 1024, 5_000_123])
def test_norm_of_normal_and_heavy_tailed_values(length: int, power: int) -> None:
    values = torch.randn(length, generator=torch.Generator().manual_seed(length + power)) ** power
    cut = length // 3
    found = accurate_norm([values[:cut], values[cut:].reshape(1, -1)])
    assert found.item() == pytest.approx(values.double().norm().item(), rel=1e-7)


def norms_of(config: RunConfig, steps: int) -> tuple[list[float], list[float], Pieces]:
    """Losses, gradient norms, and the gradients of the last step."""
    groups = initialise(config.parallel, timeout_s=120)
    seed_everything(config.run.seed, groups)
    chunks = build_model(Blueprint.of(config), groups, config.run.seed)
    engine = build_engine(config, chunks, groups, LanguageModelling())
    results = [
        train_step(engine, micro_batches(config, groups, step), lr=1e-3, weight_decay=0.1) for step in range(steps)
    ]
    gradients = gradients_of(chunks, engine.model, groups)
    destroy()
    return [result.loss for result in results], [result.grad_norm for result in results], gradients


def large(parallel: dict[str, object]) -> RunConfig:
    """5 million parameters; no clipping, so that the gradients left behind are those that were measured."""
    model = {"hidden_size": 256, "ffn_hidden_size": 1024, "vocab_size": 4000, "num_layers": 4}
    return tiny_config(parallel, model=model, optim={"clip_grad": 0.0})


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_norm_is_that_of_float64(layout: str) -> None:
    world, parallel = LAYOUTS[layout]
    ranks = collect_from_ranks(norms_of, world, large(parallel), 2)
    gradients = assemble(piece for rank in ranks for piece in rank[2])
    exact = sum(float(gradient.double().square().sum()) for gradient in gradients.values()) ** 0.5
    assert {rank[1][-1] for rank in ranks} == {ranks[0][1][-1]}
    assert ranks[0][1][-1] == pytest.approx(exact, rel=1e-6)


def test_layouts_agree_after_twelve_steps_with_clipping() -> None:
    """megatron-core's norm let them drift to 1e-4."""
    found = {}
    for layout, (world, parallel) in LAYOUTS.items():
        config = tiny_config(parallel, model={"hidden_size": 128, "ffn_hidden_size": 512}, optim={"clip_grad": 0.1})
        found[layout] = collect_from_ranks(norms_of, world, config, STEPS)[0]
    losses, norms, _ = found.pop("one rank")
    assert min(norms) > 0.1, "clipping was at work"
    for layout, (others, other_norms, _) in found.items():
        assert others == pytest.approx(losses, rel=1e-6), layout
        assert other_norms == pytest.approx(norms, rel=1e-3), layout  # Adam enlarges rounding
