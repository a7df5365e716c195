"""The counts of `plan params` against built models: toy ones of every family, and every shipped one at full size."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from patience import PATIENCE

from megatron_ko.config import ModelConfig, RunConfig, load_model_config
from megatron_ko.config.load import build
from megatron_ko.models.blueprint import Blueprint
from megatron_ko.models.build import build_structure
from megatron_ko.parallel.groups import Groups, destroy, initialise
from megatron_ko.parallel.seed import seed_everything
from megatron_ko.parallel.spawn import run_ranks
from megatron_ko.plan.params import count_parameters, padding_parameters

MODELS = sorted((Path(__file__).parents[2] / "configs" / "models").glob("*.yaml"))
# Names in the built model -> groups, the first that fits.
PARTS = {
    "norm": "norms",
    "word_embeddings": "embedding",
    "output_layer": "output_layer",
    "self_attention": "attention",
    "router": "router",
    "shared_experts": "shared_experts",
    "experts": "experts",
    "mlp": "mlp",
}
TOY = {
    "num_layers": 2,
    "hidden_size": 64,
    "ffn_hidden_size": 96,
    "num_attention_heads": 4,
    "num_query_groups": 2,
    "vocab_size": 999,
    "max_position_embeddings": 64,
}
MOE = {"num_experts": 4, "top_k": 2}
CHANGES: dict[str, dict[str, Any]] = {
    "llama": {},
    "llama tied, wide heads": {"tie_embeddings": True, "head_dim": 32},
    "llama, one key/value head": {"num_query_groups": 1},
    "qwen3": {"family": "qwen3"},
    "mixtral": {"family": "mixtral", "moe": MOE},
    "qwen3_moe": {"family": "qwen3_moe", "moe": MOE},
    "shared expert": {"family": "mixtral", "moe": MOE | {"shared_ffn_hidden_size": 128}},
    "expert bias": {"family": "mixtral", "moe": MOE | {"score": "sigmoid", "expert_bias": True}},
    "keural": {"family": "keural", "moe": MOE, "windows": [8, None], "tie_embeddings": True},
}


def run_config(model: ModelConfig, tensor: int) -> RunConfig:
    tree = {
        "run": {"dir": "unused"},
        "model": model.model_dump(mode="json"),
        "parallel": {"tensor": tensor, "sequence_parallel": tensor > 1},
        "precision": {"dtype": "fp32"},
        "data": {"tokenizer": "unused", "sources": [{"prefix": "unused"}], "sequence_length": 8},
        "optim": {"lr": 1.0},
        "training": {"steps": 1, "global_batch_size": 1},
    }
    return build(RunConfig, tree, origin="test")


def check_built(models: dict[str, ModelConfig], tensor: int, without_memory: bool) -> None:
    """In a rank: build each model as training does, and compare group by group."""
    if without_memory:  # where megatron-core allocates weights: shapes only
        torch.cuda.current_device = lambda: torch.device("meta")
    for name, model in models.items():
        config = run_config(model, tensor)
        groups = initialise(config.parallel, PATIENCE)
        seed_everything(1, groups)
        found = count_built(config, groups)
        count, padding = count_parameters(model), padding_parameters(model, tensor)
        expected = dict(count.groups)
        expected["embedding"] += padding if model.tie_embeddings else padding // 2
        expected["output_layer"] += 0 if model.tie_embeddings else padding // 2
        assert found == {group: number for group, number in expected.items() if number}, name
        assert sum(found.values()) == count.total + padding, name
        destroy()


def count_built(config: RunConfig, groups: Groups) -> dict[str, int]:
    """Parameters of the whole model by group, from this rank's part of it."""
    found: dict[str, int] = {}
    (chunk,) = build_structure(Blueprint.of(config), groups)
    for name, parameter in chunk.named_parameters():
        group = next(group for part, group in PARTS.items() if part in name)
        split = getattr(parameter, "tensor_model_parallel", False)
        found[group] = found.get(group, 0) + parameter.numel() * (groups.tp_size if split else 1)
    return found


@pytest.mark.parametrize("tensor", [1, 2])
def test_toy_models_of_every_family(tensor: int) -> None:
    models = {name: ModelConfig.model_validate_json(json.dumps(TOY | change)) for name, change in CHANGES.items()}
    assert run_ranks(check_built, tensor, (models, tensor, False), threads=1) == 0


def test_shipped_models_at_full_size() -> None:
    models = {path.stem: load_model_config(path) for path in MODELS}
    assert run_ranks(check_built, 1, (models, 1, True), threads=1) == 0
