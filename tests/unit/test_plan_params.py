"""Parameter counts against published arithmetic and against transformers' model; FLOPs against published figures."""

import json
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from typer.testing import CliRunner

from megatron_ko.cli.plan import app
from megatron_ko.config import ModelConfig, load_model_config
from megatron_ko.errors import ConfigError
from megatron_ko.plan.flops import flops_per_token
from megatron_ko.plan.params import count_parameters, padding_parameters

CONFIGS = Path(__file__).parents[2] / "configs"
MODELS = sorted((CONFIGS / "models").glob("*.yaml"))
PUBLISHED = {"frankenstallm-3b": 3_016_141_824, "bori-140m": 139_688_064, "smollm2-135m": 134_515_008}
LADDER = ["ko-150m", "ko-1b", "ko-3b", "ko-8b"]


def load(name: str) -> ModelConfig:
    return load_model_config(CONFIGS / "models" / f"{name}.yaml")


@pytest.mark.parametrize(("name", "total"), PUBLISHED.items())
def test_known_models_have_their_known_size(name: str, total: int) -> None:
    assert count_parameters(load(name)).total == total


def test_a_model_without_the_byte_rows() -> None:
    model = load("frankenstallm-3b").model_copy(update={"vocab_size": 64_000})
    assert count_parameters(model).total == 3_015_355_392


@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.stem)
@pytest.mark.parametrize("tied", [True, False])
def test_equals_transformers(path: Path, tied: bool) -> None:
    model = load_model_config(path).model_copy(update={"tie_embeddings": tied})
    with torch.device("meta"):
        peer = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=model.vocab_size,
                hidden_size=model.hidden_size,
                intermediate_size=model.ffn_hidden_size,
                num_hidden_layers=model.num_layers,
                num_attention_heads=model.num_attention_heads,
                num_key_value_heads=model.query_groups,
                head_dim=model.kv_channels,
                tie_word_embeddings=tied,
            )
        )
    groups = dict.fromkeys(("embedding", "attention", "mlp", "norms", "output_layer"), 0)
    parts = {"embed_tokens": "embedding", "self_attn": "attention", "mlp": "mlp", "norm": "norms"}
    parts["lm_head"] = "output_layer"
    for name, parameter in peer.named_parameters():
        groups[next(group for part, group in parts.items() if part in name)] += parameter.numel()
    count = count_parameters(model)
    assert count.groups == groups
    assert count.total == count.active == sum(groups.values())


@pytest.mark.parametrize("name", LADDER)
def test_the_ladder_suits_tensor_parallelism(name: str) -> None:
    model = load(name)
    kv_width = model.query_groups * model.kv_channels
    for width in (model.hidden_size, model.ffn_hidden_size, kv_width, model.vocab_size):
        assert width % 128 == 0
    assert model.query_groups % 4 == 0
    assert model.num_layers % 4 == 0
    for tensor in (1, 2, 4):
        assert padding_parameters(model, tensor) == 0


def test_padding_is_counted_apart() -> None:
    bori = load("bori-140m")
    assert padding_parameters(bori, 1) == (58_240 - 58_133) * 576
    assert padding_parameters(bori, 3) == (58_368 - 58_133) * 576
    untied = bori.model_copy(update={"tie_embeddings": False})
    assert padding_parameters(untied, 1) == 2 * padding_parameters(bori, 1)


def test_flops_are_the_published_ones() -> None:
    """Llama-3 8B at 8,192 tokens: 51.5 GFLOP a token with causal attention (Megatron-Bridge's performance tables)."""
    llama = load("ko-8b").model_copy(update={"vocab_size": 128_256})
    assert flops_per_token(llama, 8192) / 1e9 == pytest.approx(51.5, abs=0.05)


def test_flops_of_attention_grow_with_the_sequence() -> None:
    model = load("ko-1b")
    attention = flops_per_token(model, 4096) - flops_per_token(model, 2048)
    assert attention == 6 * model.num_layers * 2048 * model.num_attention_heads * model.kv_channels
    tied = model.model_copy(update={"tie_embeddings": not model.tie_embeddings})
    assert flops_per_token(tied, 2048) == flops_per_token(model, 2048)


@pytest.mark.parametrize(
    ("change", "part"),
    [({"num_attention_heads": 7, "head_dim": None}, "head_dim"), ({"num_query_groups": 5}, "num_query_groups")],
)
def test_impossible_heads_are_refused(change: dict[str, object], part: str) -> None:
    with pytest.raises(ConfigError, match=part):
        count_parameters(load("ko-1b").model_copy(update=change))


@pytest.mark.parametrize("file", ["models/frankenstallm-3b.yaml", "runs/frankenstallm-3b-pretrain.yaml"])
def test_the_verb_reads_model_files_and_run_files(file: str) -> None:
    result = CliRunner().invoke(app, ["params", str(CONFIGS / file), "--json"])
    printed = json.loads(result.stdout)
    assert printed == {
        "total": 3_016_141_824,
        "active": 3_016_141_824,
        "groups": {
            "embedding": 197_394_432,
            "attention": 704_643_072,
            "mlp": 2_113_929_216,
            "norms": 175_104,
            "output_layer": 0,
        },
    }


def test_the_table_tells_totals_and_padding() -> None:
    printed = (
        CliRunner()
        .invoke(app, ["params", str(CONFIGS / "models/bori-140m.yaml"), "--tensor", "3"], env={"COLUMNS": "120"})
        .stdout
    )
    for part in ("139,688,064", "58,133 rows", "58,368 when padded for tensor 3", "causal attention counted half"):
        assert part in printed


def test_missing_file_is_a_user_error(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["params", str(tmp_path / "nothing.yaml")])
    assert isinstance(result.exception, ConfigError)
