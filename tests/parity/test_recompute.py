"""Recomputing activations gives the gradients of keeping them, dropout included: masks are drawn again, the same."""

from typing import Any

import pytest
from harness import Outcome, tiny_config, train_under

DROPOUT = {"hidden_dropout": 0.2, "attention_dropout": 0.2}
LAYOUTS = {
    "alone": (1, {}),
    "tp2": (2, {"tensor": 2}),
    "tp2-sequence": (2, {"tensor": 2, "sequence_parallel": True}),
    "pp2": (2, {"pipeline": 2}),
}


KEPT = {"recompute": "none"}
AGAIN = (
    {"recompute": "selective"},
    {"recompute": "selective", "recompute_modules": ("core_attn", "mlp")},
    {"recompute": "full"},
    {"recompute": "full", "recompute_layers": 1},
)


def outcome(name: str, training: dict[str, Any], model: dict[str, Any]) -> Outcome:
    world_size, parallel = LAYOUTS[name]
    model = {**model, "num_layers": 2 * parallel.get("pipeline", 1)}
    return train_under(tiny_config(parallel, model=model, training=training), world_size, steps=2)


@pytest.mark.parametrize("name", LAYOUTS)
def test_recomputed_equals_not_recomputed_with_dropout(name: str) -> None:
    kept = outcome(name, KEPT, DROPOUT)
    for recompute in AGAIN:
        again = outcome(name, recompute, DROPOUT)
        assert again.losses == kept.losses, recompute
        for key, gradient in kept.gradients.items():
            assert again.gradients[key].equal(gradient), f"{recompute}: {key}"


@pytest.mark.parametrize("name", ["alone", "tp2-sequence"])
def test_recomputed_norms_add_up_gradients_in_another_order(name: str) -> None:
    kept = outcome(name, KEPT, DROPOUT)
    again = outcome(name, {"recompute": "selective", "recompute_modules": ("layernorm",)}, DROPOUT)
    assert again.losses == pytest.approx(kept.losses, rel=1e-6)
    for key, gradient in kept.gradients.items():
        assert (again.gradients[key] - gradient).norm() < 1e-6 * gradient.norm(), key


def test_dropout_is_drawn_and_differs_between_steps_and_seeds() -> None:
    dropped, whole = outcome("alone", KEPT, DROPOUT), outcome("alone", KEPT, {})
    assert dropped.losses[0] != whole.losses[0]
    assert dropped.weights.keys() == whole.weights.keys()
    other_seed = train_under(tiny_config(model={**DROPOUT, "num_layers": 2}, run={"seed": 7}), 1, steps=1)
    assert other_seed.losses[0] != dropped.losses[0]
