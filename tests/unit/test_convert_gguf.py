"""What `convert gguf` decides without llama.cpp: order of rows, kinds of vocabularies, refusals, the Modelfile."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
from typer.testing import CliRunner

from megatron_ko.cli.main import app
from megatron_ko.config import ModelConfig
from megatron_ko.convert.gguf import llama_cpp
from megatron_ko.convert.gguf.vocabulary import BYTE, CONTROL, NORMAL, UNKNOWN, read_vocabulary
from megatron_ko.convert.gguf.write import ARCHITECTURES, pair_rows, plan_tensors
from megatron_ko.errors import ConvertError


def test_rows_of_a_head_become_pairs() -> None:
    rows = torch.arange(2 * 6.0)[:, None]  # two heads of width 6
    assert pair_rows(rows, 2)[:, 0].tolist() == [0, 3, 1, 4, 2, 5, 6, 9, 7, 10, 8, 11]


def test_experts_are_stacked_in_order_and_padding_stays_behind() -> None:
    shapes: dict[str, tuple[int, ...]] = {
        f"model.layers.0.mlp.experts.{number}.up_proj.weight": (3, 2) for number in (10, 2, 0)
    }
    shapes |= {
        "model.embed_tokens.weight": (16, 2),
        "model.norm.weight": (2,),
        "model.layers.0.mlp.gate.weight": (3, 2),
    }
    model = ModelConfig.model_validate(
        {"family": "qwen3_moe", "num_layers": 1, "hidden_size": 2, "ffn_hidden_size": 3, "num_attention_heads": 1,
         "vocab_size": 16, "max_position_embeddings": 8, "moe": {"num_experts": 3, "top_k": 1}}
    )  # fmt: skip
    plan = {stored.name: stored for stored in plan_tensors(shapes, model, rows=13)}
    assert list(plan) == [
        "token_embd.weight", "blk.0.ffn_gate_inp.weight", "blk.0.ffn_up_exps.weight", "output_norm.weight",
    ]  # fmt: skip
    assert plan["token_embd.weight"].shape == (13, 2)
    stacked = plan["blk.0.ffn_up_exps.weight"]
    assert stacked.shape == (3, 3, 2) and [name.split(".")[5] for name in stacked.sources] == ["0", "2", "10"]
    assert set(ARCHITECTURES) == {"llama", "mixtral", "qwen3", "qwen3_moe"}


@pytest.mark.parametrize(
    ("kind", "algorithm", "pre"),
    [("byte-bpe", "gpt2", "qwen2"), ("bpe", "llama", "default"), ("unigram", "plamo2", "default")],
)
def test_vocabularies(kind: str, algorithm: str, pre: str, tokenizer_folder: Callable[[str], Path]) -> None:
    found = read_vocabulary(tokenizer_folder(kind))
    assert (found.algorithm, found.pre, len(found.tokens)) == (algorithm, pre, 640)
    assert found.kinds[1:6] == (CONTROL,) * 5 and found.kinds[-1] == NORMAL
    assert found.named == {"bos": 1, "eos": 2, "unk": 0, "pad": 3} and found.stops == (2,)
    assert found.kinds.count(BYTE) == (0 if kind == "byte-bpe" else 256)
    if kind != "byte-bpe":
        assert found.kinds[0] == UNKNOWN and found.scores is not None and not found.merges
    if kind == "unigram":  # whole numbers once llama.cpp has multiplied them by 10,000, and never below its unknown
        ordinary = [score for score, k in zip(found.scores or (), found.kinds, strict=True) if k == NORMAL]
        assert all((score * 1e4).is_integer() for score in ordinary) and min(ordinary) > -1000


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"normalizer": {"type": "NFC"}}, "a normalizer"),
        ({"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True, "use_regex": True}}, "its pre-tokenizer"),
        ({"pre_tokenizer": None}, "byte fallback"),
    ],
)
def test_what_llama_cpp_cannot_encode_is_refused(
    change: dict[str, Any], named: str, tokenizer_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    for path in tokenizer_folder("byte-bpe").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(ConvertError, match=named):
        read_vocabulary(tmp_path)


def test_a_begin_token_is_told(tokenizer_folder: Callable[[str], Path], tmp_path: Path) -> None:
    for path in tokenizer_folder("byte-bpe").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    assert not read_vocabulary(tmp_path).begin
    backend = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    backend.post_processor = tokenizers.processors.TemplateProcessing("<s> $A", "<s> $A $B", [("<s>", 1)])
    backend.save(str(tmp_path / "tokenizer.json"))
    assert read_vocabulary(tmp_path).begin


def test_a_folder_without_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConvertError, match=r"tokenizer\.json"):
        read_vocabulary(tmp_path)


def test_without_llama_cpp_there_is_a_remedy_and_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = llama_cpp.find_spec
    monkeypatch.setattr(llama_cpp, "find_spec", lambda name: None if name == "llama_cpp" else honest(name))
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    result = CliRunner().invoke(app, ["convert", "gguf", str(tmp_path), str(tmp_path / "out")])
    assert isinstance(result.exception, ConvertError) and result.exception.exit_code == 2
    assert "llama-cpp-python" in str(result.exception) and "megatron_ko[gguf]" in str(result.exception)
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]
