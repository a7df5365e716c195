"""All families train alike at every layout: initial weights, first gradients, losses of four steps."""

from functools import cache
from typing import Any

import pytest
from harness import STEPS, Outcome, relative_difference, tiny_config, train_all

from megatron_ko.config import RunConfig

NARROW: dict[str, Any] = {"hidden_size": 32, "ffn_hidden_size": 48}
FAMILIES: dict[str, dict[str, Any]] = {
    "smollm2": {
        "hidden_size": 72,
        "num_attention_heads": 9,
        "num_query_groups": 3,
        "ffn_hidden_size": 96,
        "vocab_multiple": 96,  # as many rows for three ranks
        "tie_embeddings": True,
    },
    "qwen3": {"family": "qwen3"},
    "mixtral": {
        **NARROW,
        "family": "mixtral",
        "moe": {"num_experts": 4, "top_k": 2, "aux_loss_coeff": 0.02, "z_loss_coeff": 0.001},
    },
    "qwen3_moe": {
        **NARROW,
        "family": "qwen3_moe",
        "moe": {
            "num_experts": 8,
            "top_k": 3,
            "aux_loss": "sequence",
            "aux_loss_coeff": 0.05,
            "shared_ffn_hidden_size": 32,
        },
    },
    "keural": {
        **NARROW,
        "family": "keural",
        "windows": (7, None),
        "tie_embeddings": True,
        "moe": {"num_experts": 4, "top_k": 2, "score": "sigmoid", "expert_bias": True, "z_loss_coeff": 0.001},
    },
}

TP2 = {"tensor": 2, "sequence_parallel": True}
PP2, EP2, ETP1 = {"pipeline": 2}, {"expert": 2}, {"expert_tensor": 1}
GATHERED = {"dispatcher": "allgather"}
# World size -> name -> (families, layout).
CASES: dict[int, dict[str, tuple[tuple[str, ...], dict[str, Any]]]] = {
    2: {
        "dp2": (("smollm2", "qwen3", "keural"), {}),
        "tp2": (("qwen3",), {"tensor": 2}),
        "tp2-sequence": (("qwen3", "keural"), TP2),
        "tp2-etp1": (("mixtral",), TP2 | ETP1),
        "etp2": (("mixtral",), {"expert_tensor": 2}),
        "pp2": (("smollm2", "qwen3", "keural"), PP2),
        "pp2-vpp2": (("smollm2", "qwen3", "keural"), PP2 | {"virtual_pipeline": 2}),
        "ep2": (("qwen3_moe", "keural"), EP2),
        "ep2-allgather": (("mixtral", "keural"), EP2 | GATHERED),
        "ep2-plain-optimizer": (("mixtral",), EP2 | {"distributed_optimizer": False}),
        "ep2-tp2": (("qwen3_moe", "keural"), EP2 | TP2 | ETP1),
    },
    3: {"tp3": (("smollm2",), {"tensor": 3})},  # its heads cannot be shared by two
    4: {
        "ep2-tp2-dp2": (("mixtral",), EP2 | TP2 | ETP1),
        "ep2-etp2": (("qwen3_moe", "keural"), EP2 | TP2),
        "ep2-etp2-allgather": (("mixtral", "keural"), EP2 | TP2 | GATHERED),
        "pp2-ep2": (("keural",), PP2 | EP2),
    },
    8: {
        "pp2-tp2-ep2": (("keural",), PP2 | EP2 | TP2 | ETP1),
        "pp2-etp2-ep2-allgather": (("qwen3_moe", "keural"), PP2 | EP2 | TP2 | GATHERED),
    },
}
NAMED = [
    (world, family, name)
    for world, cases in CASES.items()
    for name, (families, _) in cases.items()
    for family in families
]


def layers_of(layout: dict[str, Any]) -> int:
    """One a stage and one a part of an interleaved stage, but two at least."""
    return 4 if "virtual_pipeline" in layout else 2


def case_config(family: str, layers: int, layout: dict[str, Any] | None = None) -> RunConfig:
    model = {**FAMILIES[family], "num_layers": layers}
    if "windows" in model:
        model["windows"] *= layers // len(model["windows"])
    return tiny_config(layout, model=model, training={"global_batch_size": 4})


@cache
def alone() -> dict[tuple[str, int], Outcome]:
    """By family and number of layers."""
    layouts = (layout for named in CASES.values() for layout in named.values())
    cases = sorted({(family, layers_of(layout)) for families, layout in layouts for family in families})
    return dict(zip(cases, train_all([case_config(*case) for case in cases], 1), strict=True))


@cache
def spread(world_size: int) -> dict[tuple[str, str], Outcome]:
    cases = [(family, name, layout) for name, (families, layout) in CASES[world_size].items() for family in families]
    configs = [case_config(family, layers_of(layout), layout) for family, _, layout in cases]
    return {
        (family, name): outcome
        for (family, name, _), outcome in zip(cases, train_all(configs, world_size), strict=True)
    }


@pytest.mark.parametrize(("world_size", "family", "name"), NAMED, ids=[f"{family}-{name}" for _, family, name in NAMED])
def test_training_does_not_depend_on_the_layout(world_size: int, family: str, name: str) -> None:
    layers = layers_of(CASES[world_size][name][1])
    one, many = alone()[family, layers], spread(world_size)[family, name]
    assert len(one.routing) == (layers if "moe" in FAMILIES[family] else 0)
    assert many.weights.keys() == one.weights.keys()
    for key, weight in one.weights.items():
        assert many.weights[key].equal(weight), f"initial {key}"
    trained = {key: gradient for key, gradient in one.gradients.items() if not key.endswith("expert_bias")}
    errors = {key: relative_difference(many.gradients[key], gradient) for key, gradient in trained.items()}
    worst = max(errors, key=lambda key: errors[key])
    assert errors[worst] < 1e-5, f"gradient of {worst}: {errors[worst]:.1e}"
    assert len(many.losses) == STEPS
    assert many.losses == pytest.approx(one.losses, rel=1e-5)
    assert many.grad_norms == pytest.approx(one.grad_norms, rel=1e-5)
    for ours, theirs in zip(many.routing, one.routing, strict=True):
        assert ours.loads == pytest.approx(theirs.loads, abs=0.05)  # rounding may send a token elsewhere by now
        assert ours.entropy == pytest.approx(theirs.entropy, rel=1e-3)
        assert ours.aux_loss == pytest.approx(theirs.aux_loss, rel=1e-2)
