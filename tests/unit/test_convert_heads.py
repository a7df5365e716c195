"""Heads that do not add up to the width: said where the family's class refuses them, exported elsewhere."""

from pathlib import Path
from typing import Any

import pytest
from isolated import isolated
from native_models import EXPERTS, KEURAL, native_model
from typer.testing import CliRunner

from megatron_ko.cli.main import app
from megatron_ko.config import ModelConfig
from megatron_ko.config.checks.export import export_warning
from megatron_ko.convert.hf_export import export_hf
from megatron_ko.errors import ConvertError

# 48 / 5 is no whole number; 48 / 6 is 8 and the heads are 16 wide.
ODD: dict[str, Any] = {"num_layers": 1, "num_attention_heads": 5, "num_query_groups": 5, "head_dim": 16}
FAMILIES: dict[str, dict[str, Any]] = {
    "qwen3": {"family": "qwen3"},
    "mixtral": {"family": "mixtral", "moe": EXPERTS},
    "qwen3_moe": {"family": "qwen3_moe", "moe": EXPERTS},
    "keural": {**KEURAL, "windows": (20, None), "num_layers": 2},
}
RUN = """
run: {{dir: run, name: heads}}
optim: {{lr: 1.0e-3}}
model: {{family: {family}, num_layers: 1, hidden_size: 48, ffn_hidden_size: 64, num_attention_heads: {heads},
         num_query_groups: {heads}, head_dim: 16, vocab_size: 203, max_position_embeddings: 64}}
data: {{tokenizer: tokenizer, sources: [{{prefix: corpus}}], sequence_length: 32}}
training: {{steps: 1, global_batch_size: 1, micro_batch_size: 1}}
"""


@pytest.mark.parametrize("family", FAMILIES)
def test_other_classes_take_any_width_of_a_head(family: str, tmp_path: Path) -> None:
    fields = {**ODD, **FAMILIES[family]}
    source = native_model(tmp_path / "native", fields)
    assert export_warning(source.model) is None
    isolated(export_hf, source, tmp_path / "hf", depth="quick")


def test_llama_with_wide_heads_is_exported(tmp_path: Path) -> None:
    source = native_model(tmp_path / "native", {"num_layers": 1})  # 6 heads of 16 in a width of 48
    assert export_warning(source.model) is None
    isolated(export_hf, source, tmp_path / "hf", depth="quick")


def test_llama_is_refused_before_weights_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = native_model(tmp_path / "native", ODD)
    monkeypatch.setattr("megatron_ko.convert.hf_export.write_shards", lambda *given: pytest.fail("too late"))
    with pytest.raises(ConvertError, match=r"config.json in transformers could not run(?s:.*)multiple of the number"):
        isolated(export_hf, source, tmp_path / "hf", depth="quick")


@pytest.mark.parametrize(("family", "heads", "warned"), [("llama", 5, True), ("llama", 6, False), ("qwen3", 5, False)])
def test_config_check_says_it(family: str, heads: int, warned: bool, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(RUN.format(family=family, heads=heads), encoding="utf-8")
    done = CliRunner().invoke(app, ["config", "check", str(tmp_path / "run.yaml"), "--no-data"])
    assert done.exit_code == 0, done.exception
    assert ("hf-export will refuse this network" in done.output) == warned


def test_kanana_is_warned_of() -> None:
    """Kanana 1.5 2.1B: 1792 wide, 24 heads of 128."""
    sizes = {"num_layers": 1, "hidden_size": 1792, "ffn_hidden_size": 8064, "num_attention_heads": 24, "head_dim": 128}
    model = ModelConfig.model_validate(
        {**sizes, "num_query_groups": 8, "vocab_size": 128, "max_position_embeddings": 64}
    )
    assert "1792 and 24" in (export_warning(model) or "")
