"""Folders that are unusual, damaged or half made: converted rightly, or refused with words, never an abort of C."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from gguf_tests import Folder, gate

from megatron_ko.convert.gguf.export import export_gguf
from megatron_ko.errors import ConvertError


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    change(content)
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")


def add_tokens(source: Path, *texts: str, **fields: Any) -> None:
    """Tokens behind the others, in a folder that was not trained here."""

    def add(content: dict[str, Any]) -> None:
        plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}
        new = [{"id": 640 + n, "content": text, **plain, **fields} for n, text in enumerate(texts)]
        content["added_tokens"] += new

    edit(source / "tokenizer.json", add)
    (source / "megatron_ko.json").unlink()


@pytest.mark.parametrize("context", [2, 64])
def test_a_context_shorter_than_a_conversation(context: int, folder: Folder, tmp_path: Path) -> None:
    exported = export_gguf(folder(max_position_embeddings=context), tmp_path / "out", ["f32"])
    assert gate(exported, "f32: greedy generation").tried == 3 * min(64, context // 2)


def test_three_ends_of_an_answer(folder: Folder, tmp_path: Path) -> None:
    source = folder()
    edit(source / "generation_config.json", lambda content: content.update(eos_token_id=[5, 2, 3]))
    exported = export_gguf(source, tmp_path / "out", ["f32"])
    assert gate(exported, "end of an answer").found == "stops at <|im_end|>, </s>, <pad>"


def test_many_ends_of_an_answer(folder: Folder, tmp_path: Path) -> None:
    """llama.cpp is told of three, and knows others by name: of four that it does not know, one is too many."""
    source = folder(vocab_size=704)
    add_tokens(source, "<|endoftext|>", "<|eot_id|>", "<|stop|>", special=True)
    edit(source / "generation_config.json", lambda content: content.update(eos_token_id=[2, 640, 641, 642, 3]))
    exported = export_gguf(source, tmp_path / "out", ["f32"])
    found = "stops at <|im_end|>, </s>, <|endoftext|>, <|eot_id|>, <|stop|>, <pad>"
    assert gate(exported, "end of an answer").found == found
    edit(source / "generation_config.json", lambda content: content["eos_token_id"].append(4))
    with pytest.raises(ConvertError, match=r"does not stop at \['<\|im_start\|>'\]"):
        export_gguf(source, tmp_path / "more", ["f32"])


def test_added_tokens_are_text(folder: Folder, tmp_path: Path) -> None:
    """One longer than llama.cpp's usual room, one of spaces, one in letters of byte-level BPE."""
    source = folder(vocab_size=704)
    add_tokens(source, "<tool_call>", "x" * 1500, "  y  ", "né")
    exported = export_gguf(source, tmp_path / "out", ["f32"])
    assert gate(exported, "spelling of every id").tried == 634 + 4


def test_an_added_token_that_llama_cpp_finds_elsewhere_is_refused(folder: Folder, tmp_path: Path) -> None:
    source = folder(vocab_size=704)
    add_tokens(source, "foo", single_word=True)
    with pytest.raises(ConvertError, match="ids of text"):
        export_gguf(source, tmp_path / "out", ["f32"])


def test_tokens_that_llama_cpp_spells_alike_are_refused(folder: Folder, tmp_path: Path) -> None:
    """llama.cpp aborts the process at them."""
    source = folder("bpe", vocab_size=704)
    words = json.loads((source / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
    add_tokens(source, next(word for word in words if word[0] == " ").replace(" ", "\u2581"), special=True)
    with pytest.raises(ConvertError, match="the same text"):
        export_gguf(source, tmp_path / "out", ["f32"])


@pytest.mark.parametrize(
    ("file", "content", "named"),
    [
        ("config.json", "{", "cannot be read"),
        ("generation_config.json", "[]", "cannot be read"),
        ("generation_config.json", '{"eos_token_id": [5, 640]}', "ids that the tokenizer does not have"),
    ],
)
def test_a_damaged_file_is_named(file: str, content: str, named: str, folder: Folder, tmp_path: Path) -> None:
    source = folder()
    (source / file).write_text(content)
    with pytest.raises(ConvertError, match=named) as caught:
        export_gguf(source, tmp_path / "out", ["f32"])
    assert file in str(caught.value)


def test_a_file_of_another_template_is_left_alone(folder: Folder, tmp_path: Path) -> None:
    """The weights are the same, what stands beside them or was asked for is not."""
    source = folder()
    export_gguf(source, tmp_path / "out", ["f32"])
    with pytest.raises(ConvertError, match="made in another way"):
        export_gguf(source, tmp_path / "out", ["f32"], text="다른 글로 견준다.")
    template = source / "chat_template.jinja"
    template.write_text(template.read_text() + "{# the same, said otherwise #}")
    with pytest.raises(ConvertError, match="another configuration or tokenizer"):
        export_gguf(source, tmp_path / "out", ["f32"])
