"""A step that is skipped leaves experts as they were: biases, loss scales, and what warns of starving ones."""

from pathlib import Path
from typing import Any

import pytest
import torch
from patience import PATIENCE

from megatron_ko.config import RunConfig
from megatron_ko.data.training.batch import Batch
from megatron_ko.models.blueprint import Blueprint
from megatron_ko.models.build import build_model
from megatron_ko.models.router import routers_of
from megatron_ko.models.routing import LayerRouting
from megatron_ko.objectives import LanguageModelling
from megatron_ko.parallel.groups import destroy, initialise
from megatron_ko.parallel.seed import seed_everything
from megatron_ko.parallel.spawn import run_ranks
from megatron_ko.train.engine import Engine, build_engine
from megatron_ko.train.routing import StarvationWatch, record_interval, routing_means, routing_record
from megatron_ko.train.state import StepResult, TrainState
from megatron_ko.train.step import train_step

SETTINGS: dict[str, Any] = {
    "run": {"dir": Path("nowhere")},
    "model": {
        "family": "mixtral", "num_layers": 2, "hidden_size": 16, "ffn_hidden_size": 16, "num_attention_heads": 2,
        "vocab_size": 64, "max_position_embeddings": 16,
        "moe": {"num_experts": 4, "top_k": 1, "score": "sigmoid", "expert_bias": True},
    },
    "data": {"tokenizer": Path("nowhere"), "sources": ({"prefix": Path("nowhere")},), "sequence_length": 16},
    "optim": {"lr": 0.01},
    "training": {"steps": 9, "global_batch_size": 2},
}  # fmt: skip


def config(dtype: str) -> RunConfig:
    return RunConfig.model_validate({**SETTINGS, "precision": {"dtype": dtype, "loss_scale_hysteresis": 1}})


def make_engine(chosen: RunConfig) -> Engine:
    groups = initialise(chosen.parallel, timeout_s=PATIENCE)
    seed_everything(1, groups)
    return build_engine(chosen, build_model(Blueprint.of(chosen), groups, chosen.run.seed), groups, LanguageModelling())


def step(engine: Engine) -> StepResult:
    return train_step(engine, batches(), lr=0.01, weight_decay=0.1)


def batches() -> list[Batch]:
    tokens = torch.randint(64, (1, 17), generator=torch.Generator().manual_seed(0))
    part = Batch(
        tokens=tokens[:, :-1], labels=tokens[:, 1:], loss_mask=torch.ones(1, 16), position_ids=torch.arange(16)[None]
    )
    return [part, part]


def skipped_steps() -> None:
    for dtype in ("fp32", "fp16"):
        engine = make_engine(config(dtype))
        biases = [router.expert_bias for router in routers_of(engine.model)]
        assert len(biases) == 2 and not step(engine).skipped
        assert all(bias.abs().max() > 0 and bias.dtype == torch.float32 for bias in biases), "updated by a good step"
        before = [bias.clone() for bias in biases]
        weights = [parameter.detach().clone() for parameter in engine.model[0].parameters()]
        scales = [part.get_loss_scale().item() for part in engine.optimizer.chained_optimizers]
        expert = next(p for name, p in engine.model[0].named_parameters() if name.endswith("experts.weight2"))
        finite = expert.data.clone()
        expert.data[0].fill_(float("inf"))  # the gradients of these experts, and of whatever feeds them
        result = step(engine)
        expert.data.copy_(finite)
        assert result.skipped
        assert all(bias.equal(old) for bias, old in zip(biases, before, strict=True))
        assert all(new.equal(old) for new, old in zip(engine.model[0].parameters(), weights, strict=True))
        if dtype == "fp16":
            assert engine.optimizer.chained_optimizers[1].get_loss_scale().item() == scales[1] / 2
            overflow_of_experts_alone(engine, expert)
        destroy()


def overflow_of_experts_alone(engine: Engine, expert: torch.nn.Parameter) -> None:
    """Both optimizers go on with one loss scale, although only one of them has seen the overflow."""
    engine.optimizer.prepare_grads = damaged(engine.optimizer.prepare_grads, expert)
    before = engine.optimizer.get_loss_scale().item()
    assert step(engine).skipped
    after = [part.get_loss_scale().item() for part in engine.optimizer.chained_optimizers]
    assert after == [before / 2, before / 2]


def damaged(prepare: Any, expert: torch.nn.Parameter) -> Any:
    def prepare_grads() -> bool:
        expert.main_grad.fill_(float("inf"))
        return bool(prepare())

    return prepare_grads


def test_a_skipped_step_changes_neither_biases_nor_weights_and_keeps_one_loss_scale() -> None:
    assert run_ranks(skipped_steps, 1, (), threads=1) == 0


def layer(*loads: float, dropped: float = 0.0) -> LayerRouting:
    return LayerRouting(loads=loads, dropped=dropped, entropy=1.0, aux_loss=1.1, z_loss=2.0)


def test_numbers_of_a_step() -> None:
    routing = (layer(1.0, 1.0), layer(1.5, 0.3, dropped=0.1))
    means = routing_means(routing)
    assert means["expert_imbalance"] == 1.25 and means["expert_imbalance_worst"] == 1.5
    assert means["expert_load_least"] == 0.3 and means["expert_dropped"] == 0.05
    assert routing_means(()) == {}
    record = routing_record(7, routing)
    assert record["step"] == 7 and record["loads"] == [[1.0, 1.0], [1.5, 0.3]] and record["dropped"] == [0.0, 0.1]
    assert (record_interval(100), record_interval(57_000)) == (1, 285)


def test_a_starving_expert_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    watch = StarvationWatch(0.1)

    def see(steps: int, *routing: LayerRouting) -> list[str]:
        caplog.clear()
        for _ in range(steps):
            watch.see(TrainState(step=30), StepResult(1.0, 1.0, 0.1, 1.0, False, 16, routing=routing))
        return [record.getMessage() for record in caplog.records]

    fair, starved = layer(1.0, 1.0), layer(1.95, 0.05)
    assert see(19, fair, starved) == []  # not for a few steps
    (told,) = see(1, fair, starved)
    assert "expert 1 of layer 2 (0.050)" in told and "step 30" in told and "aux_loss_coeff" in told
    assert see(30, fair, starved) == []
    assert see(30, fair, fair) == []
    assert len(see(30, starved, fair)) == 1
    never = StarvationWatch(0.0)
    for _ in range(40):
        never.see(TrainState(), StepResult(1.0, 1.0, 0.1, 1.0, False, 16, routing=(starved,)))
    assert len(caplog.records) == 1
