"""Recomputation and offloading: combinations that cannot work are refused with what to do instead."""

from pathlib import Path
from typing import Any

import pytest

from megatron_ko.config import RunConfig
from megatron_ko.config.validate import check

MOE = {"family": "mixtral", "moe": {"num_experts": 4, "top_k": 2}}


def config(training: dict[str, Any], model: dict[str, Any], parallel: dict[str, Any]) -> RunConfig:
    dimensions = {
        "num_layers": 4, "hidden_size": 64, "ffn_hidden_size": 64, "num_attention_heads": 4,
        "vocab_size": 100, "max_position_embeddings": 64,
    }  # fmt: skip
    return RunConfig.model_validate(
        {
            "run": {"dir": Path("run")},
            "model": {**dimensions, **model},
            "parallel": parallel,
            "data": {"tokenizer": Path("t"), "sources": ({"prefix": Path("c")},), "sequence_length": 32},
            "optim": {"lr": 1e-3},
            "training": {"steps": 10, "global_batch_size": 8, **training},
        }
    )


@pytest.mark.parametrize(
    ("training", "model", "parallel", "path"),
    [
        ({"recompute_modules": ("mlp",)}, {}, {}, "training.recompute_modules"),
        ({"recompute": "full", "recompute_modules": ("mlp",)}, {}, {}, "training.recompute_modules"),
        ({"recompute": "selective", "recompute_layers": 2}, {}, {}, "training.recompute_layers"),
        ({"recompute": "selective", "recompute_modules": ("moe_act",)}, {}, {}, "training.recompute_modules"),
        ({"recompute": "selective", "recompute_modules": ("mlp",)}, MOE, {}, "training.recompute_modules"),
        ({"offload_layers": 4}, {}, {}, "training.offload_layers"),
        ({"offload_layers": 1}, {}, {"pipeline": 2}, "training.offload_layers"),
        ({"offload_layers": 1, "recompute": "full"}, {}, {}, "training.offload_layers"),
        ({"recompute": "selective", "recompute_modules": ()}, {}, {}, "training.recompute_modules"),
    ],
)
def test_contradictions_are_named(
    training: dict[str, Any], model: dict[str, Any], parallel: dict[str, Any], path: str
) -> None:
    (problem,) = check(config(training, model, parallel))
    assert problem.path == path


@pytest.mark.parametrize(
    ("training", "model"),
    [
        ({"recompute": "selective", "recompute_modules": ("core_attn", "layernorm", "mlp")}, {}),
        ({"recompute": "selective", "recompute_modules": ("moe", "shared_experts")}, MOE),
        ({"recompute": "full", "recompute_layers": 2}, {}),
        ({"offload_layers": 3}, {}),
    ],
)
def test_what_works_passes(training: dict[str, Any], model: dict[str, Any]) -> None:
    assert check(config(training, model, {})) == []
