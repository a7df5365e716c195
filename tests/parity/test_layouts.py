"""The same training at every layout: initial weights, gradients of the first step, losses of four steps."""

from functools import cache

import pytest
from harness import STEPS, Outcome, relative_difference, tiny_config, train_under

LAYOUTS = {
    "tp2": (2, {"tensor": 2}),
    "tp2-sequence": (2, {"tensor": 2, "sequence_parallel": True}),
    "pp2": (2, {"pipeline": 2}),
    "pp2-interleaved": (2, {"pipeline": 2, "virtual_pipeline": 2}),
    "dp2": (2, {"distributed_optimizer": False}),
    "dp2-distributed-optimizer": (2, {"distributed_optimizer": True}),
    "dp2-overlapped": (
        2,
        {"distributed_optimizer": True, "overlap_grad_reduce": True, "overlap_param_gather": True},
    ),
    "pp2-uneven": (2, {"pipeline": 2, "first_stage_layers": 1}),
    "pp3-ends-count": (3, {"pipeline": 3, "embedding_as_layer": True, "loss_as_layer": True}),
    "tp4-shared-key-value-heads": (4, {"tensor": 4}),
    "tp2-pp2": (4, {"tensor": 2, "pipeline": 2}),
    "tp2-pp2-sequence": (4, {"tensor": 2, "pipeline": 2, "sequence_parallel": True}),
}


@cache
def alone(layers: int) -> Outcome:
    return train_under(tiny_config(model={"num_layers": layers}), 1)


@pytest.mark.parametrize("name", LAYOUTS)
def test_training_does_not_depend_on_the_layout(name: str) -> None:
    world_size, parallel = LAYOUTS[name]
    layers = 4 if "pipeline" in parallel else 2
    assert_same(name, train_under(tiny_config(parallel, model={"num_layers": layers}), world_size), alone(layers))


def test_tied_embeddings_are_one_weight_on_two_stages() -> None:
    tied = {"tie_embeddings": True, "num_layers": 2}
    alone = train_under(tiny_config(model=tied), 1)
    assert not any("output_layer" in key for key in alone.weights)
    for world_size, parallel in ((2, {"pipeline": 2}), (4, {"pipeline": 2, "tensor": 2, "sequence_parallel": True})):
        assert_same("tied", train_under(tiny_config(parallel, model=tied), world_size), alone)


def assert_same(name: str, spread: Outcome, alone: Outcome) -> None:
    assert spread.weights.keys() == alone.weights.keys()
    for key, weight in alone.weights.items():
        assert spread.weights[key].equal(weight), f"initial {key}"
    errors = {key: relative_difference(spread.gradients[key], gradient) for key, gradient in alone.gradients.items()}
    worst = max(errors, key=lambda key: errors[key])
    assert errors[worst] < 1e-5, f"gradient of {worst}: {errors[worst]:.1e}"
    assert len(spread.losses) == STEPS
    assert spread.losses == pytest.approx(alone.losses, rel=1e-5)
    assert spread.grad_norms == pytest.approx(alone.grad_norms, rel=1e-4)
    drift = max(abs(a / b - 1) for a, b in zip(spread.losses, alone.losses, strict=True))
    print(f"{name}: gradients {errors[worst]:.1e}, losses {drift:.1e}")
