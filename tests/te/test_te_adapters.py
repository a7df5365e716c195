"""Adapters at Transformer Engine's layers train like those at portable ones: what they are given is normalised."""

import pytest
from cases import BF16, EXPERTS, HALF, TP2, Case
from engine import assert_alike

LORA, DORA = {"rank": 4, "alpha": 6.0}, {"kind": "dora", "rank": 4, "alpha": 6.0}
WIDER = {"rank": 8, "alpha": 6.0}
ALONE = {
    "lora": Case({"adapter": LORA}),
    "dora": Case({"adapter": DORA}),
    "dora-bf16": Case({"adapter": DORA, "precision": BF16}, **HALF),
    "recompute-full": Case({"adapter": LORA, "training": {"recompute": "full"}}),
    "recompute-selective": Case({"adapter": LORA, "training": {"recompute": "selective"}}),
    "moe": Case({"adapter": WIDER, "model": EXPERTS}),
    # The gradient of an expert's A goes through B, and is rounded once more.
    "moe-bf16": Case({"adapter": WIDER, "model": EXPERTS, "precision": BF16}, gradients=6e-2, losses=1e-3),
}
TWO = {
    "tp2": Case({"adapter": DORA, "parallel": {"tensor": 2}}),
    "tp2-sequence": Case({"adapter": DORA, "parallel": TP2}),
    "tp2-sequence-bf16": Case({"adapter": LORA, "parallel": TP2, "precision": BF16}, **HALF),
    "dp2": Case({"adapter": LORA, "parallel": {"distributed_optimizer": True}}),
    "ep2": Case({"adapter": WIDER, "model": EXPERTS, "parallel": {"expert": 2}}),
    "tp2-ep2": Case({"adapter": WIDER, "model": EXPERTS, "parallel": {**TP2, "expert": 2, "expert_tensor": 1}}),
    "pp2": Case({"adapter": LORA, "parallel": {"pipeline": 2}}),
}


@pytest.mark.parametrize("name", ALONE)
def test_one_rank_trains_like_portable_layers(name: str) -> None:
    assert_alike(ALONE[name], world_size=1, steps=3)


@pytest.mark.parametrize("name", TWO)
def test_two_ranks_train_like_portable_layers(name: str) -> None:
    assert_alike(TWO[name], world_size=2, steps=2)
