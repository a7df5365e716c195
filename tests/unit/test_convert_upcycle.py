"""Upcycling: experts that are copies compute what the dense model computes, in every layer and at every option."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from isolated import isolated
from peer_models import transformers_model
from typer.testing import CliRunner

from megatron_ko.artifacts.native import Pretrained, find_pretrained
from megatron_ko.cli.convert import app
from megatron_ko.config import ModelConfig, MoeConfig, load_model_config
from megatron_ko.convert import closeness
from megatron_ko.convert.hf_import import import_hf
from megatron_ko.convert.native import NativeReader
from megatron_ko.convert.upcycle import upcycle
from megatron_ko.errors import ConvertError, KoError

SIZES = {
    "num_layers": 3, "hidden_size": 48, "ffn_hidden_size": 80, "num_attention_heads": 6, "num_query_groups": 2,
    "head_dim": 16, "vocab_size": 203, "max_position_embeddings": 300, "init_std": 0.1,
}  # fmt: skip


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Pretrained]:
    """A native Llama with tied embeddings and a native Qwen3, with norms that are not 1."""
    base = tmp_path_factory.mktemp("dense")
    found = {}
    for family, tied in (("llama", True), ("qwen3", False)):
        torch.manual_seed(1)
        peer = transformers_model(ModelConfig.model_validate({**SIZES, "family": family, "tie_embeddings": tied}))
        for parameter in peer.parameters():
            parameter.data = torch.randn_like(parameter) * 0.1 + (parameter.dim() == 1)
        peer.save_pretrained(base / f"{family}-hf")
        isolated(import_hf, base / f"{family}-hf", base / family)
        found[family] = find_pretrained(base / family)
    return found


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("llama", {"num_experts": 8, "top_k": 2}),
        ("llama", {"num_experts": 4, "top_k": 4, "softmax_before_topk": False}),
        ("qwen3", {"num_experts": 6, "top_k": 3, "score": "sigmoid", "expert_bias": True}),
        ("qwen3", {"num_experts": 4, "top_k": 2, "capacity_factor": 1.0}),
    ],
)
def test_the_same_function(family: str, options: dict[str, Any], dense: dict[str, Pretrained], tmp_path: Path) -> None:
    source, moe = dense[family], MoeConfig.model_validate(options)
    logits = isolated(upcycle, source, tmp_path / "moe", moe).logits
    assert logits.max_difference < 1e-5 and logits.top1 == 1.0 and logits.positions > 500
    made = find_pretrained(tmp_path / "moe")
    assert made.model.family == {"llama": "mixtral", "qwen3": "qwen3_moe"}[family] and made.model.moe == moe
    before, after = NativeReader(source.weights), NativeReader(made.weights)
    for layer in range(3):
        for own in ("linear_fc1", "linear_fc2"):
            expected = before.read(f"decoder.layers.mlp.{own}.weight", (layer,))
            for expert in range(moe.num_experts):
                key = f"decoder.layers.mlp.experts.experts.{own}.weight"
                assert after.read(key, (layer, expert)).equal(expected)
    routers = [after.read("decoder.layers.mlp.router.weight", (layer,)) for layer in range(3)]
    assert 0.08 < torch.stack(routers).std() < 0.12 and not routers[0].equal(routers[1])
    assert json.loads((tmp_path / "moe/lineage.json").read_text())["made_by"] == "convert upcycle"


@pytest.mark.parametrize(
    "options",
    [
        {"softmax_before_topk": True},
        {"topk_scale": 2.0},
        {"shared_ffn_hidden_size": 32},
        {"top_k": 9},
        {"expert_bias": True},
        {"top_k": 1, "score": "sigmoid"},
    ],
)
def test_what_would_not_be_the_same_function_is_refused(
    options: dict[str, Any], dense: dict[str, Pretrained], tmp_path: Path
) -> None:
    with pytest.raises(KoError) as caught:
        isolated(
            upcycle,
            dense["llama"],
            tmp_path / "moe",
            MoeConfig.model_validate({"num_experts": 8, "top_k": 2, **options}),
        )
    assert caught.value.exit_code == 2 and not list(tmp_path.iterdir())


def test_a_difference_leaves_nothing_behind(
    dense: dict[str, Pretrained], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(closeness, "MEAN_FACTOR", 0.0)
    with pytest.raises(ConvertError, match="not proven: logits"):
        isolated(upcycle, dense["llama"], tmp_path / "moe", MoeConfig(num_experts=4, top_k=2))
    assert not list(tmp_path.iterdir())


@dataclass(frozen=True)
class Invoked:
    """How a verb ended."""

    exit_code: int
    output: str
    exception: BaseException | None


def invoke(words: list[str]) -> Invoked:
    result = CliRunner().invoke(app, words)
    return Invoked(result.exit_code, result.output, result.exception)


def test_the_verb(dense: dict[str, Pretrained], tmp_path: Path) -> None:
    words = ["upcycle", str(dense["qwen3"].origin), str(tmp_path / "moe"), "--experts", "4", "--top-k", "3"]
    result = isolated(invoke, [*words, "--score", "sigmoid", "--expert-bias"])
    assert result.exit_code == 0 and "the same model" in result.output, result.output
    expected = MoeConfig(num_experts=4, top_k=3, score="sigmoid", expert_bias=True)
    assert load_model_config(tmp_path / "moe/model.yaml").moe == expected
    again = isolated(invoke, ["upcycle", str(tmp_path / "moe"), str(tmp_path / "twice")])
    assert isinstance(again.exception, ConvertError) and "only a dense model" in str(again.exception)
