"""The learning rate: megatron-core's scheduler is the oracle; edges and properties on top."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler

from megatron_ko.config import OptimConfig
from megatron_ko.train.schedule import decay_steps, describe, lr_at

STEPS = 50


def optim(**values: object) -> OptimConfig:
    return OptimConfig(**{"lr": 3e-4, **values})


@pytest.mark.parametrize("schedule", ["cosine", "wsd", "linear", "constant"])
@pytest.mark.parametrize("warmup", [0, 7])
def test_equals_megatron_core(schedule: str, warmup: int) -> None:
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.0)
    settings = optim(schedule=schedule, warmup_steps=warmup, decay_steps=12 if schedule == "wsd" else None)
    oracle = OptimizerParamScheduler(
        optimizer,
        init_lr=0.0,
        max_lr=settings.lr,
        min_lr=settings.lr * settings.min_lr_ratio,
        lr_warmup_steps=warmup,
        lr_decay_steps=STEPS,
        lr_decay_style={"wsd": "WSD"}.get(schedule, schedule),
        start_wd=0.0,
        end_wd=0.0,
        wd_incr_steps=STEPS,
        wd_incr_style="constant",
        wsd_decay_steps=12,
        lr_wsd_decay_style="minus_sqrt",
    )
    for step in range(STEPS + 3):
        oracle.num_steps = step + 1
        assert lr_at(step, settings, STEPS) == pytest.approx(oracle.get_lr(optimizer.param_groups[0]), rel=1e-12)


def test_edges() -> None:
    settings = optim(schedule="cosine", warmup_steps=10)
    assert lr_at(0, settings, 100) == pytest.approx(3e-5)  # no step is spent at zero
    assert lr_at(9, settings, 100) == 3e-4
    assert lr_at(99, settings, 100) == pytest.approx(3e-5)
    assert lr_at(500, settings, 100) == pytest.approx(3e-5)
    assert lr_at(5, optim(schedule="constant"), 3) == 3e-4


def test_wsd_is_flat_until_its_tail() -> None:
    settings = optim(schedule="wsd", warmup_steps=5)
    assert decay_steps(settings, 100) == 20
    assert {lr_at(step, settings, 100) for step in range(4, 80)} == {3e-4}
    assert lr_at(80, settings, 100) < 3e-4
    assert decay_steps(optim(schedule="wsd"), 3) == 1


@given(
    steps=st.integers(1, 300),
    warmup=st.integers(0, 299),
    schedule=st.sampled_from(["cosine", "wsd", "linear", "constant"]),
    floor=st.floats(0, 1),
)
def test_never_leaves_its_bounds_and_falls_after_warmup(steps: int, warmup: int, schedule: str, floor: float) -> None:
    settings = optim(schedule=schedule, warmup_steps=min(warmup, steps - 1), min_lr_ratio=floor)
    rates = [lr_at(step, settings, steps) for step in range(steps)]
    assert all(0 <= rate <= 3e-4 * (1 + 1e-12) for rate in rates)
    after = rates[settings.warmup_steps :]
    assert all(later <= earlier * (1 + 1e-12) for earlier, later in pairwise(after))


def test_description_adds_up() -> None:
    assert describe(optim(schedule="wsd", warmup_steps=10), 100) == (
        "wsd: 10 warm-up, 70 stable, 20 decay steps, peak 0.0003 -> 3e-05"
    )
    assert "90 constant steps, peak 0.0003 -> 0.0003" in describe(optim(schedule="constant", warmup_steps=10), 100)
