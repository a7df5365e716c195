"""Adapters: every layout gives the losses and gradients of one rank, and one rank gives those of peft."""

from typing import Any

import pytest
from harness import Outcome, relative_difference, tiny_config, train_all

from megatron_ko.config import RunConfig

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
