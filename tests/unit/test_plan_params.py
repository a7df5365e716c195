"""Parameter counts against published arithmetic and against transformers' model; FLOPs against published figures."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from peer_models import transformers_model
from typer.testing import CliRunner

from megatron_ko.cli.plan import app
from megatron_ko.config import ModelConfig, load_model_config
from megatron_ko.config.checks.layout import tensor_sizes
from megatron_ko.errors import ConfigError
from megatron_ko.plan.flops import flops_per_token, matmul_parameters, visible_keys
from megatron_ko.plan.params import count_parameters, padding_parameters

CONFIGS = Path(__file__).parents[2] / "configs"
MODELS = sorted((CONFIGS / "models").glob("*.yaml"))
# The table of known models: the file, what is changed in it, total, active.
PUBLISHED = [
    ("frankenstallm-3b", {}, 3_016_141_824, 3_016_141_824),
    ("frankenstallm-3b", {"vocab_size": 64_000}, 3_015_355_392, 3_015_355_392),
    ("moai-5b", {}, 5_249_659_648, 5_249_659_648),
    ("moai-5b-28h", {}, 5_167_084_288, 5_167_084_288),
    ("moai-5b-128k", {}, 5_249_659_648, 5_249_659_648),
    ("keural-15b", {}, 14_832_054_272, 4_866_387_968),
    ("keural-15b", {"vocab_size": 131_072}, 14_832_046_080, 4_866_379_776),
    ("bori-140m", {}, 139_688_064, 139_688_064),
    ("smollm2-135m", {}, 134_515_008, 134_515_008),
]
# Names in transformers' models -> groups, the first that fits.
PARTS = {
    "norm": "norms",
    "embed_tokens": "embedding",
    "self_attn": "attention",
    "mlp.experts": "experts",
    "mlp.gate.": "router",
    "mlp": "mlp",
    "lm_head": "output_layer",
}
LADDER = ["ko-150m", "ko-1b", "ko-3b", "ko-8b", "ko-moe-15b-a3b"]


def load(name: str) -> ModelConfig:
    return load_model_config(CONFIGS / "models" / f"{name}.yaml")


@pytest.mark.parametrize(("name", "change", "total", "active"), PUBLISHED)
def test_known_models_have_their_known_size(name: str, change: dict[str, int], total: int, active: int) -> None:
    count = count_parameters(load(name).model_copy(update=change))
    assert (count.total, count.active) == (total, active)


@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.stem)
@pytest.mark.parametrize("tied", [True, False])
def test_equals_transformers(path: Path, tied: bool) -> None:
    # Windows have no parameters, and transformers has no class for layers that differ in them.
    model = load_model_config(path).model_copy(update={"tie_embeddings": tied, "windows": None})
    with torch.device("meta"):
        peer = transformers_model(model)
    count = count_parameters(model)
    groups = dict.fromkeys(count.groups, 0)
    for name, parameter in peer.named_parameters():
        groups[next(group for part, group in PARTS.items() if part in name)] += parameter.numel()
    assert count.groups == groups
    assert count.total == sum(groups.values())


def test_shared_experts_compute_every_token() -> None:
    model = load("ko-moe-15b-a3b")
    assert model.moe
    shared = model.model_copy(update={"moe": model.moe.model_copy(update={"shared_ffn_hidden_size": 1024})})
    plain, more = count_parameters(model), count_parameters(shared)
    extra = model.num_layers * 3 * model.hidden_size * 1024
    assert more.groups == plain.groups | {"shared_experts": extra}
    assert (more.total - plain.total, more.active - plain.active) == (extra, extra)


@pytest.mark.parametrize("name", LADDER)
def test_the_ladder_suits_tensor_parallelism(name: str) -> None:
    model = load(name)
    assert model.kv_channels == 128
    widths = [model.hidden_size, model.ffn_hidden_size, model.num_attention_heads * 128, model.vocab_size]
    assert all(width % 128 == 0 for width in widths)
    assert model.query_groups % 4 == 0
    assert model.num_layers % 4 == 0
    assert {1, 2, 4, 8} <= set(tensor_sizes(model))
    assert not any(padding_parameters(model, tensor) for tensor in (1, 2, 4))


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


@pytest.mark.parametrize("window", [None, 512, 1, 5000])
def test_keys_that_a_token_sees(window: int | None) -> None:
    """Against a count of the visible pairs of a mask."""
    length = 2048
    row, column = np.arange(length)[:, None], np.arange(length)[None, :]
    pairs = ((column <= row) & (row - column <= (length if window is None else window))).sum()
    assert visible_keys(length, window) == pytest.approx(pairs / length, abs=0.5)


def test_windows_spare_attention() -> None:
    keural = load("keural-15b")
    plain = keural.model_copy(update={"windows": None})
    spared = 2048 / 2 - visible_keys(2048, 512)
    work = 12 * keural.num_attention_heads * keural.kv_channels * keural.num_layers / 2 * spared
    assert flops_per_token(plain, 2048) - flops_per_token(keural, 2048) == pytest.approx(work, rel=1e-12)
    assert flops_per_token(plain, 512) == flops_per_token(keural, 512)


def test_flops_count_the_experts_of_a_token() -> None:
    model = load("keural-15b")
    assert model.moe
    without_look_up = count_parameters(model).active - count_parameters(model).groups["norms"]
    assert matmul_parameters(model) == without_look_up  # tied: the output layer is the embedding


@pytest.mark.parametrize(
    ("change", "part"),
    [("num_attention_heads: 7\nhead_dim: null", "head_dim"), ("num_query_groups: 5", "num_query_groups")],
)
def test_impossible_heads_are_refused(change: str, part: str, tmp_path: Path) -> None:
    path = tmp_path / "model.yaml"
    path.write_text(f"extends: {CONFIGS / 'models/ko-1b.yaml'}\n{change}\n")
    result = CliRunner().invoke(app, ["params", str(path)])
    assert isinstance(result.exception, ConfigError) and part in str(result.exception)


@pytest.mark.parametrize("file", ["models/frankenstallm-3b.yaml", "runs/frankenstallm-3b-pretrain.yaml"])
def test_the_verb_reads_model_files_and_run_files(file: str) -> None:
    result = CliRunner().invoke(app, ["params", str(CONFIGS / file), "--json"])
    groups = {
        "embedding": 197_394_432,
        "attention": 704_643_072,
        "mlp": 2_113_929_216,
        "norms": 175_104,
        "output_layer": 0,
    }
    assert json.loads(result.stdout) == {
        "total": 3_016_141_824,
        "active": 3_016_141_824,
        "groups": groups,
        "active_groups": groups,
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


def test_ranks_that_cannot_share_the_network_are_refused() -> None:
    result = CliRunner().invoke(app, ["params", str(CONFIGS / "models/ko-1b.yaml"), "--tensor", "3"])
    assert isinstance(result.exception, ConfigError) and "one of [1, 2, 4, 8, 16]" in str(result.exception)
