"""Recomputing activations gives the gradients of keeping them, dropout included: masks are drawn again, the same."""

import pytest
from harness import Outcome, tiny_config, train_under

DROPOUT = {"hidden_dropout": 0.2, "attention_dropout": 0.2}
LAYOUTS = {
    "alone": (1, {}),
    "tp2": (2, {"tensor": 2}),
    "tp2-sequence": (2, {"tensor": 2, "sequence_parallel": True}),
    "pp2": (2, {"pipeline": 2}),
}


def outcome(name: str, recompute: str, model: dict[str, float]) -> Outcome:
    world_size, parallel = LAYOUTS[name]
    return train_under(tiny_config(parallel, model=model, training={"recompute": recompute}), world_size, steps=3)


@pytest.mark.parametrize("name", LAYOUTS)
def test_recomputed_equals_not_recomputed_with_dropout(name: str) -> None:
    kept = outcome(name, "none", DROPOUT)
    for recompute in ("selective", "full"):
        again = outcome(name, recompute, DROPOUT)
        assert again.losses == kept.losses, recompute
        for key, gradient in kept.gradients.items():
            assert again.gradients[key].equal(gradient), f"{recompute}: {key}"


def test_dropout_is_drawn_and_differs_between_steps_and_seeds() -> None:
    dropped, whole = outcome("alone", "none", DROPOUT), outcome("alone", "none", {})
    assert dropped.losses[0] != whole.losses[0]
    assert dropped.weights.keys() == whole.weights.keys()
    other_seed = train_under(tiny_config(model=DROPOUT, run={"seed": 7}), 1, steps=1)
    assert other_seed.losses[0] != dropped.losses[0]
