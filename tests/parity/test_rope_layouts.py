"""Scaled rotary positions train alike at every layout: first gradients by parameter, losses of three steps."""

from typing import Any

import pytest
from harness import Outcome, relative_difference, tiny_config, train_all

STEPS = 3
# Trained contexts of half the sequence and less.
YARN = {"type": "yarn", "factor": 8.0, "original_max_position_embeddings": 8}
DYNAMIC = {"type": "dynamic", "factor": 2.0, "original_max_position_embeddings": 16}
MODELS: dict[str, dict[str, Any]] = {
    "qwen3 yarn": {"family": "qwen3", "rope": {"theta": 500.0, "scaling": YARN}},
    "llama dynamic": {"rope": {"theta": 500.0, "scaling": DYNAMIC}},
}
LAYOUTS: dict[str, dict[str, Any]] = {
    "tp2-sequence": {"tensor": 2, "sequence_parallel": True},
    "pp2": {"pipeline": 2},
    "pp2-vpp2": {"pipeline": 2, "virtual_pipeline": 2},
    "cp2": {"context": 2},
}


@pytest.fixture(scope="module")
def alone() -> dict[str, Outcome]:
    return dict(zip(MODELS, train_all([tiny_config(model=model) for model in MODELS.values()], 1, STEPS), strict=True))


@pytest.fixture(scope="module")
def spread() -> dict[tuple[str, str], Outcome]:
    cases = {(name, layout): tiny_config(LAYOUTS[layout], model=MODELS[name]) for name in MODELS for layout in LAYOUTS}
    return dict(zip(cases, train_all(list(cases.values()), 2, STEPS), strict=True))


def test_scaling_changes_what_is_learnt(alone: dict[str, Outcome]) -> None:
    for name, model in MODELS.items():
        (plain,) = train_all([tiny_config(model=model | {"rope": {"theta": 500.0}})], 1, STEPS)
        assert plain.losses != alone[name].losses


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", MODELS)
def test_training_does_not_depend_on_the_layout(
    name: str, layout: str, alone: dict[str, Outcome], spread: dict[tuple[str, str], Outcome]
) -> None:
    one, many = alone[name], spread[name, layout]
    for key, gradient in one.gradients.items():
        assert many.weights[key].equal(one.weights[key])
        assert relative_difference(many.gradients[key], gradient) < 1e-5, key
    assert many.losses == pytest.approx(one.losses, rel=1e-5)
