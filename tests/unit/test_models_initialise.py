"""Initial weights: their distribution, and that padding, precision and other parameters do not move them."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from patience import PATIENCE

from megatron_ko.config import RunConfig
from megatron_ko.errors import ConfigError
from megatron_ko.models.blueprint import Blueprint
from megatron_ko.models.build import build_model
from megatron_ko.models.specs import uses_transformer_engine
from megatron_ko.parallel.groups import destroy, initialise
from megatron_ko.parallel.seed import seed_everything
from megatron_ko.parallel.spawn import run_ranks

MODEL = {
    "num_layers": 2,
    "hidden_size": 48,
    "ffn_hidden_size": 320,
    "num_attention_heads": 4,
    "vocab_size": 300,
    "max_position_embeddings": 16,
}


def config(seed: int = 1, dtype: str = "fp32", **model: Any) -> RunConfig:
    nowhere = Path("nowhere")
    return RunConfig.model_validate(
        {
            "run": {"dir": nowhere, "name": "init", "seed": seed},
            "model": {**MODEL, **model},
            "precision": {"dtype": dtype},
            "data": {"tokenizer": nowhere, "sources": ({"prefix": nowhere},), "sequence_length": 8},
            "optim": {"lr": 1e-3},
            "training": {"steps": 1, "global_batch_size": 1, "micro_batch_size": 1},
            "eval": {"interval": 0, "samples": 0},
            "checkpoint": {"interval": 1},
        }
    )


def save_weights(configs: dict[str, RunConfig], folder: Path) -> None:
    for name, chosen in configs.items():
        groups = initialise(chosen.parallel, timeout_s=PATIENCE)
        # Not the run's seed: weights must not depend on the state of any generator.
        seed_everything(sum(name.encode()), groups)
        (chunk,) = build_model(Blueprint.of(chosen), groups, chosen.run.seed)
        found = {key.removeprefix("module."): value.clone() for key, value in chunk.named_parameters()}
        torch.save(found, folder / f"{name}.pt")
        destroy()


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, torch.Tensor]]:
    folder = tmp_path_factory.mktemp("weights")
    configs = {
        "plain": config(),
        "again": config(),
        "seed": config(seed=2),
        "half": config(dtype="bf16"),
        "padded": config(vocab_multiple=512),
        "tied": config(tie_embeddings=True),
    }
    assert run_ranks(save_weights, 1, (configs, folder), threads=1) == 0
    return {name: torch.load(folder / f"{name}.pt") for name in configs}


def test_the_same_seed_gives_the_same_weights(weights: dict[str, dict[str, torch.Tensor]]) -> None:
    for key, value in weights["plain"].items():
        assert value.equal(weights["again"][key]), key
        assert "norm" in key or not value.equal(weights["seed"][key]), key


def test_every_precision_starts_from_the_same_numbers(weights: dict[str, dict[str, torch.Tensor]]) -> None:
    for key, value in weights["plain"].items():
        assert weights["half"][key].dtype == torch.bfloat16
        assert value.bfloat16().equal(weights["half"][key]), key


def test_padding_moves_nothing_and_is_zero(weights: dict[str, dict[str, torch.Tensor]]) -> None:
    plain, padded = weights["plain"], weights["padded"]
    for key, value in plain.items():
        vocabulary = key.startswith(("embedding", "output_layer"))
        assert value.shape[0] == 384 if vocabulary else value.equal(padded[key])
        if vocabulary:
            assert padded[key].shape[0] == 512
            assert padded[key][:300].equal(value[:300])
            assert not padded[key][300:].any() and not value[300:].any()


def test_tying_leaves_the_other_weights_alone(weights: dict[str, dict[str, torch.Tensor]]) -> None:
    assert weights["plain"].keys() - weights["tied"].keys() == {"output_layer.weight"}
    assert all(value.equal(weights["plain"][key]) for key, value in weights["tied"].items())


def test_distribution(weights: dict[str, dict[str, torch.Tensor]]) -> None:
    std = {"linear_proj": 0.02 / math.sqrt(4), "linear_fc2": 0.02 / math.sqrt(4)}
    drawn = {}
    for key, value in weights["plain"].items():
        if "norm" in key:
            assert value.eq(1).all(), key
            continue
        value = value[:300] if key.startswith(("embedding", "output_layer")) else value
        expected = std.get(key.split(".")[-2], 0.02)
        assert value.std().item() == pytest.approx(expected, rel=0.04), key
        assert abs(value.mean().item()) < 4 * expected / math.sqrt(value.numel()), key
        # No two matrices, layers or blocks of rows share their numbers.
        drawn |= {(key, row): tuple(value[row, :4].tolist()) for row in range(0, len(value), 4)}
    assert len(set(drawn.values())) == len(drawn)


def test_transformer_engine_asked_for_where_it_cannot_run() -> None:
    assert not uses_transformer_engine("auto") and not uses_transformer_engine("portable")
    with pytest.raises(ConfigError, match=r"pip install --no-build-isolation .transformer-engine\[pytorch\]"):
        uses_transformer_engine("transformer_engine")
