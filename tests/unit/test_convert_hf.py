"""Hugging Face folders to native models and back: the same bytes, the same logits, and nothing half-done."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from isolated import isolated
from peer_models import transformers_model
from safetensors.torch import load_file, save_file

from megatron_ko.artifacts.native import find_pretrained
from megatron_ko.config import ModelConfig
from megatron_ko.convert import hf_export, hf_files, verify
from megatron_ko.convert.families import rules_of
from megatron_ko.convert.hf_export import export_hf
from megatron_ko.convert.hf_import import import_hf
from megatron_ko.convert.mapping import TensorMapping, TensorRule, query_key_value
from megatron_ko.errors import ConvertError

SIZES = {
    "num_layers": 3, "hidden_size": 48, "ffn_hidden_size": 80, "num_attention_heads": 6, "num_query_groups": 2,
    "head_dim": 16, "vocab_size": 203, "max_position_embeddings": 300, "rope": {"theta": 5e4}, "init_std": 0.1,
}  # fmt: skip
EXPERTS = {"moe": {"num_experts": 4, "top_k": 2}}
MODELS: dict[str, dict[str, Any]] = {
    "llama": {"family": "llama"},
    "llama-tied": {"family": "llama", "tie_embeddings": True},
    "llama-llama3": {
        "family": "llama",
        "rope": {"scaling": {"type": "llama3", "factor": 8.0, "original_max_position_embeddings": 64}},
    },
    "qwen3-yarn": {
        "family": "qwen3",
        "norm_eps": 1e-6,
        "rope": {"scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 75}},
    },
    "mixtral": {"family": "mixtral", **EXPERTS},
    "mixtral-window": {"family": "mixtral", **EXPERTS, "windows": (16, 16, 16)},
    "qwen3-moe": {"family": "qwen3_moe", **EXPERTS},
    "qwen3-moe-all": {"family": "qwen3_moe", "moe": {**EXPERTS["moe"], "softmax_before_topk": True}},
}  # fmt: skip


def network(name: str) -> ModelConfig:
    return ModelConfig.model_validate({**SIZES, **MODELS[name]})


@pytest.fixture
def folder(tmp_path: Path) -> Any:
    def save(name: str) -> Path:
        torch.manual_seed(1)
        peer = transformers_model(network(name))
        for parameter in peer.parameters():  # norms too, so that none can be lost
            parameter.data = torch.randn_like(parameter) * 0.1 + (parameter.dim() == 1)
        peer.save_pretrained(tmp_path / name, max_shard_size="40KB")
        return tmp_path / name

    return save


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}


@pytest.mark.parametrize("name", MODELS)
def test_round_trip_gives_the_same_bytes(name: str, folder: Any, tmp_path: Path) -> None:
    theirs = folder(name)
    logits = isolated(import_hf, theirs, tmp_path / "native").logits
    assert logits.max_difference < 1e-4 and logits.top1 == 1.0
    native = find_pretrained(tmp_path / "native")
    assert native.model.family == MODELS[name]["family"]
    isolated(export_hf, native, tmp_path / "again", shard_bytes=50_000)
    before, after = tensors_of(theirs), tensors_of(tmp_path / "again")
    assert before.keys() == after.keys()
    assert all(torch.equal(after[key], tensor) and after[key].dtype == tensor.dtype for key, tensor in before.items())


Sabotage = Callable[[dict[str, torch.Tensor]], None]


def drop(state: dict[str, torch.Tensor]) -> None:
    del state["model.layers.1.self_attn.k_proj.weight"]


def add(state: dict[str, torch.Tensor]) -> None:
    state["model.layers.1.self_attn.k_proj.bias"] = torch.zeros(32)


def reshape(state: dict[str, torch.Tensor]) -> None:
    name = "model.layers.0.mlp.up_proj.weight"
    state[name] = state[name][:-1].contiguous()


@pytest.mark.parametrize(
    ("sabotage", "named"), [(drop, "1 missing"), (add, "1 unexpected"), (reshape, "1 of another shape")]
)
def test_tensors_must_be_those_of_the_model(sabotage: Sabotage, named: str, folder: Any, tmp_path: Path) -> None:
    theirs = folder("llama")
    state = tensors_of(theirs)
    for path in theirs.glob("model*"):
        path.unlink()
    sabotage(state)
    save_file(state, theirs / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConvertError, match=named):
        isolated(import_hf, theirs, tmp_path / "native")
    assert [path.name for path in tmp_path.iterdir()] == ["llama"]


@pytest.mark.parametrize(
    ("field", "value"),
    [("rms_norm_eps", 1e-3), ("rope_parameters", {"rope_theta": 6e4, "rope_type": "default"})],
)
def test_a_wrong_constant_is_caught_by_the_logits(
    field: str, value: object, folder: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    isolated(import_hf, folder("llama"), tmp_path / "native")
    honest = hf_files.to_hf_config
    monkeypatch.setattr(hf_files, "to_hf_config", lambda *args, **kwargs: {**honest(*args, **kwargs), field: value})
    with pytest.raises(ConvertError, match="logits"):
        isolated(export_hf, find_pretrained(tmp_path / "native"), tmp_path / "export")
    assert not (tmp_path / "export").exists()


def swap_gate_and_up(rules: tuple[TensorRule, ...]) -> tuple[TensorRule, ...]:
    return tuple(
        replace(rule, others=rule.others[::-1]) if rule.native.endswith("linear_fc1.weight") else rule for rule in rules
    )


def forget_the_order_of_heads(rules: tuple[TensorRule, ...]) -> tuple[TensorRule, ...]:
    def plain(model: ModelConfig) -> TensorMapping:
        right = query_key_value(model)
        sizes = [shape[0] for shape in right.shapes]
        return replace(right, split=lambda ours: ours.split(sizes))

    return tuple(replace(rule, mapping=plain) if "linear_qkv.weight" in rule.native else rule for rule in rules)


@pytest.mark.parametrize("sabotage", [swap_gate_and_up, forget_the_order_of_heads])
def test_a_wrong_rule_is_caught_by_the_logits(
    sabotage: Callable[..., tuple[TensorRule, ...]], folder: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    isolated(import_hf, folder("llama"), tmp_path / "native")
    for module in (hf_export, verify):  # the table itself is wrong, so the tensors follow it
        monkeypatch.setattr(module, "rules_of", lambda model: sabotage(rules_of(model)))
    with pytest.raises(ConvertError, match="logits"):
        isolated(export_hf, find_pretrained(tmp_path / "native"), tmp_path / "export")
    assert not (tmp_path / "export").exists()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"attention_bias": True}, "attention_bias"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"model_type": "gpt2"}, "model_type"),
        ({"rope_parameters": {"rope_type": "longrope", "rope_theta": 1e4}}, "longrope"),
        ({"logit_scale": 0.5}, "logit_scale"),
    ],
)
def test_what_is_not_computed_is_refused(change: dict[str, Any], named: str, folder: Any, tmp_path: Path) -> None:
    theirs = folder("llama")
    path = theirs / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(ConvertError, match=named):
        isolated(import_hf, theirs, tmp_path / "native")


def test_an_output_that_exists_is_left_alone(folder: Any, tmp_path: Path) -> None:
    (tmp_path / "native").mkdir()
    with pytest.raises(ConvertError, match="exists"):
        isolated(import_hf, folder("llama"), tmp_path / "native")
    assert list((tmp_path / "native").iterdir()) == []
