"""Random networks of every family: the same logits in llama.cpp, and a refusal by name of what it cannot compute."""

import json
from pathlib import Path
from typing import Any

import orjson
import pytest
import tokenizers
from gguf_tests import Folder, gate

from megatron_ko.convert.gguf.export import export_gguf
from megatron_ko.errors import ConvertError

EXPERTS = {"moe": {"num_experts": 4, "top_k": 2}}
MODELS: dict[str, dict[str, Any]] = {
    "llama": {},
    "llama-tied": {"tie_embeddings": True, "num_query_groups": 4},
    "llama-linear": {"rope": {"scaling": {"type": "linear", "factor": 2.0}}},
    "llama-llama3": {
        "rope": {"scaling": {"type": "llama3", "factor": 8.0, "original_max_position_embeddings": 64}},
    },
    "qwen3": {"family": "qwen3", "norm_eps": 1e-6},
    "qwen3-yarn": {
        "family": "qwen3",
        "rope": {"scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 75}},
    },
    "mixtral": {"family": "mixtral", **EXPERTS},
    "qwen3-moe": {"family": "qwen3_moe", **EXPERTS},
}


@pytest.mark.parametrize("name", MODELS)
def test_every_family_gives_the_same_logits(name: str, folder: Folder, tmp_path: Path) -> None:
    exported = export_gguf(folder(**MODELS[name]), tmp_path / "out", ["f32"])
    assert float(gate(exported, "f32: logits").found.split()[2].rstrip(",")) < 1e-3
    assert gate(exported, "f32: top token").found.startswith("0.00% differ")
    assert all(one.ok for one in exported.proof.gates)
    record = orjson.loads((tmp_path / "out/lineage.json").read_bytes())
    assert record["made_by"] == "convert gguf" and len(record["gates"]) == len(exported.proof.gates)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"out-f32.gguf", "Modelfile", "lineage.json"}


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"family": "mixtral", **EXPERTS, "windows": (16, 16, 16)}, "a sliding window"),
        ({"family": "qwen3_moe", "moe": {**EXPERTS["moe"], "softmax_before_topk": True}}, "norm_topk_prob"),
        (
            {"rope": {"scaling": {"type": "dynamic", "factor": 2.0, "original_max_position_embeddings": 64}}},
            "rope scaling dynamic",
        ),
    ],
)
def test_what_llama_cpp_does_not_compute_is_refused(
    fields: dict[str, Any], named: str, folder: Folder, tmp_path: Path
) -> None:
    with pytest.raises(ConvertError, match=named):
        export_gguf(folder(**fields), tmp_path / "out", ["f32"])
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]


def test_rows_that_pad_the_vocabulary_stay_behind(folder: Folder, tmp_path: Path) -> None:
    exported = export_gguf(folder(vocab_size=704), tmp_path / "out", ["f32"])
    assert gate(exported, "f32: tensors").ok
    import gguf

    shapes = {tensor.name: tensor.shape.tolist() for tensor in gguf.GGUFReader(tmp_path / "out/out-f32.gguf").tensors}
    assert shapes["token_embd.weight"] == shapes["output.weight"] == [64, 640]


def test_a_tokenizer_of_another_model_is_refused(folder: Folder, tmp_path: Path) -> None:
    with pytest.raises(ConvertError, match="640 ids, 512 rows"):
        export_gguf(folder(vocab_size=512), tmp_path / "out", ["f32"])


def test_a_begin_token_is_put_where_transformers_puts_it(folder: Folder, tmp_path: Path) -> None:
    source = folder()
    backend = tokenizers.Tokenizer.from_file(str(source / "tokenizer.json"))
    backend.post_processor = tokenizers.processors.TemplateProcessing("<s> $A", "<s> $A $B", [("<s>", 1)])
    backend.save(str(source / "tokenizer.json"))
    assert gate(export_gguf(source, tmp_path / "out", ["f32"]), "added by default").found.startswith("[1, ")


def test_half_precision_files_hold_the_rounded_weights(folder: Folder, tmp_path: Path) -> None:
    source = folder()
    exported = export_gguf(source, tmp_path / "out", ["bf16", "f16"])
    assert [(one.kind, round(one.bits)) for one in exported.files] == [("f16", 16), ("bf16", 16)]
    assert gate(exported, "bf16: values").ok and gate(exported, "f16: values").ok
    config = json.loads((source / "config.json").read_text())
    assert config["dtype"] == "float32"
