"""Adapters put into the weights of models of any family and type, and written for peft; a wrong one is not."""

import json
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from isolated import isolated
from native_models import EXPERTS, KEURAL, native_model
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from megatron_ko.artifacts.lineage import read
from megatron_ko.artifacts.native import AdapterRun, Pretrained, find_pretrained
from megatron_ko.config import AdapterConfig, RunConfig
from megatron_ko.convert import merge_adapter as module
from megatron_ko.convert import peft_export as peft_module
from megatron_ko.convert.families import rules_of
from megatron_ko.convert.hf_export import export_hf
from megatron_ko.convert.mapping import blocks
from megatron_ko.convert.merge_adapter import merge_adapter
from megatron_ko.convert.native import NativeReader, TensorBlock, write_native
from megatron_ko.convert.peft_export import export_peft
from megatron_ko.convert.peft_import import import_peft
from megatron_ko.errors import ConvertError
from megatron_ko.models.adapter_weights import EXPERT_PLACES, LAYERS, MARK, PLACES

ATTENTION = ("qkv", "proj")
CASES: dict[str, tuple[dict[str, Any], dict[str, Any], torch.dtype]] = {
    "llama": ({}, {}, torch.float32),
    "llama dora": ({"tie_embeddings": True}, {"kind": "dora", "targets": ("qkv", "fc1")}, torch.float32),
    "qwen3 bf16": ({"family": "qwen3"}, {"kind": "dora"}, torch.bfloat16),
    "mixtral": ({"family": "mixtral", "moe": EXPERTS}, {"targets": ATTENTION}, torch.float32),
    "mixtral experts": ({"family": "mixtral", "moe": EXPERTS}, {}, torch.float32),
    "keural bf16": (KEURAL, {"targets": ATTENTION}, torch.bfloat16),
}
FOR_PEFT = [case for case in CASES if "experts" not in case]


def place_of(base: Pretrained, target: str) -> str:
    return LAYERS + (EXPERT_PLACES[target] if base.model.moe and target in EXPERT_PLACES else PLACES[target][0])


def adapter_run(folder: Path, case: str) -> AdapterRun:
    """Random adapters of a random model, as a run would leave them."""
    fields, section, dtype = CASES[case]
    base = native_model(folder / "base", fields, dtype=dtype)
    adapter = AdapterConfig.model_validate({"rank": 3, "alpha": 5.0, **section})
    shapes, draw = NativeReader(base.weights).shapes, torch.Generator().manual_seed(7)
    parts, stacked = [], {}
    for target in adapter.targets:
        prefix = place_of(base, target)
        *stack, rows, columns = shapes[f"{prefix}.weight"]
        sizes = {"a": (3, columns), "b": (rows, 3), **({"magnitude_change": (rows,)} if adapter.kind == "dora" else {})}
        for name, size in sizes.items():
            stacked[f"{prefix}{MARK}{name}"] = (*stack, *size)
            for index in product(*map(range, stack)):
                tensor = (torch.randn(size, generator=draw) * 0.1).to(dtype)
                parts.append(TensorBlock(f"{prefix}{MARK}{name}", index, size, dtype, lambda tensor=tensor: tensor))
    (folder / "run").mkdir()
    write_native(folder / "run", parts, stacked)
    run = replace(base, weights=folder / "run", origin=folder / "run", step=7, tokens=70, weights_hash="adapters")
    return AdapterRun(RunConfig.model_construct(), adapter, run, base)


@pytest.mark.parametrize("case", CASES)
def test_a_merged_model_is_base_and_adapters(case: str, tmp_path: Path) -> None:
    source = adapter_run(tmp_path, case)
    proof = isolated(merge_adapter, source, tmp_path / "merged")
    assert all(gate.ok and gate.tried for gate in proof.gates) and len(proof.gates) == 3
    before, after = NativeReader(source.base.weights), NativeReader(find_pretrained(tmp_path / "merged").weights)
    assert before.shapes == after.shapes
    changed = {key for key in before.shapes if not torch.equal(before.read(key), after.read(key))}
    assert changed == {place_of(source.base, target) + ".weight" for target in source.adapter.targets}
    assert all(before.dtype(key) == after.dtype(key) for key in before.shapes)
    record = read(tmp_path / "merged")
    assert record and [parent["weights"] for parent in record["parents"]] == [source.base.weights_hash, "adapters"]
    assert isolated(merge_adapter, source, tmp_path / "merged").already
    if "keural" not in case:
        isolated(export_hf, find_pretrained(tmp_path / "merged"), tmp_path / "hf", depth="quick")


@pytest.mark.parametrize("case", FOR_PEFT)
def test_peft_gets_the_same_weights(case: str, tmp_path: Path) -> None:
    source = adapter_run(tmp_path, case)
    (gate,) = export_peft(source, tmp_path / "peft").gates
    parts = {"qkv": 3, "proj": 1, "fc1": 2, "fc2": 1}
    assert gate.tried == source.run.model.num_layers * sum(parts[target] for target in source.adapter.targets)


def test_a_wrong_sum_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, right = adapter_run(tmp_path, "llama"), module.merged_weight
    monkeypatch.setattr(module, "merged_weight", lambda *given: right(*given) * 1.0001)
    with pytest.raises(ConvertError, match="logits: as written"):
        isolated(merge_adapter, source, tmp_path / "merged")
    monkeypatch.setattr(peft_module, "merged_weight", lambda *given: right(*given) * 1.0001)
    with pytest.raises(ConvertError, match="weights with adapters"):
        export_peft(source, tmp_path / "peft")
    assert not (tmp_path / "merged").exists() and not (tmp_path / "peft").exists()


@pytest.mark.parametrize("dora", [False, True])
def test_adapters_of_peft_give_what_peft_merges(dora: bool, tmp_path: Path) -> None:
    base = native_model(tmp_path / "base", {"family": "qwen3"})
    isolated(export_hf, base, tmp_path / "hf", depth="quick")
    peer = AutoModelForCausalLM.from_pretrained(tmp_path / "hf", dtype=torch.float32)
    targets = ["q_proj", "v_proj", "up_proj", "down_proj"]  # parts of our matrices
    options = LoraConfig(r=3, lora_alpha=5, target_modules=targets, use_dora=dora)
    adapted, draw = get_peft_model(peer, options), torch.Generator().manual_seed(1)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            parameter.data = torch.randn(parameter.shape, generator=draw) * 0.1
        elif "magnitude" in name:
            parameter.data *= 1 + 0.1 * torch.rand(parameter.shape, generator=draw)
    adapted.save_pretrained(tmp_path / "peft")
    isolated(import_peft, tmp_path / "peft", base, tmp_path / "made")
    made = find_pretrained(tmp_path / "made")
    merged = adapted.merge_and_unload().state_dict()
    reader = NativeReader(made.weights)
    for block in blocks(rules_of(made.model), made.model):
        for name, part in zip(block.others, block.mapping.split(reader.read(block.native, block.index)), strict=True):
            torch.testing.assert_close(
                part, merged[name], rtol=1e-5, atol=1e-6, msg=lambda text, name=name: name + text
            )


def test_adapters_of_experts_do_not_go_to_peft(tmp_path: Path) -> None:
    with pytest.raises(ConvertError, match="merge-adapter"):
        export_peft(adapter_run(tmp_path, "mixtral experts"), tmp_path / "peft")


def test_other_adapters_of_peft_are_refused(tmp_path: Path) -> None:
    source = adapter_run(tmp_path, "llama")
    export_peft(source, tmp_path / "peft")
    fields = json.loads((tmp_path / "peft/adapter_config.json").read_text())
    for more, message in (
        ({"use_rslora": True}, "something else than LoRA"),
        ({"rank_pattern": {"q_proj": 8}}, "something else than LoRA"),
        ({"r": None}, "cannot be read"),
    ):
        (tmp_path / "peft/adapter_config.json").write_text(json.dumps({**fields, **more}))
        with pytest.raises(ConvertError, match=message):
            import_peft(tmp_path / "peft", source.base, tmp_path / "made")
    (tmp_path / "peft/adapter_config.json").write_text(json.dumps(fields))
    other = native_model(tmp_path / "other", {"num_layers": 3})
    with pytest.raises(ConvertError, match="do not fit"):
        import_peft(tmp_path / "peft", other, tmp_path / "made")


def test_peft_and_back(tmp_path: Path) -> None:
    source = adapter_run(tmp_path, "llama dora")
    export_peft(source, tmp_path / "peft")
    isolated(import_peft, tmp_path / "peft", source.base, tmp_path / "back")
    isolated(merge_adapter, source, tmp_path / "merged")
    one, other = (NativeReader(find_pretrained(tmp_path / name).weights) for name in ("back", "merged"))
    assert all(torch.allclose(one.read(key), other.read(key), rtol=1e-5, atol=1e-6) for key in one.shapes)
