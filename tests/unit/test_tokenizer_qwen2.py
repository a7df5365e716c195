"""Byte-level BPE is cut as Qwen2 cuts, to the letter, so that llama.cpp and others know the pre-tokenizer by name."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizers import Tokenizer as Backend

from megatron_ko.data.tokenizer import load_tokenizer
from megatron_ko.data.tokenizer.gates import NASTY
from megatron_ko.data.tokenizer.trainers import QWEN2_PATTERN

CODE = 'def f(x):\n    if x > 1024:\n\t\treturn "12가 345"\n\n\n        # 끝'


@pytest.fixture
def folder(tokenizer_folder: Callable[[str], Path]) -> Path:
    return tokenizer_folder("byte-bpe")


def test_the_pattern_is_the_published_one(folder: Path) -> None:
    oracle = pytest.importorskip("transformers.models.qwen2.tokenization_qwen2")
    content = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    assert oracle.PRETOKENIZE_REGEX == QWEN2_PATTERN
    split, letters = content["pre_tokenizer"]["pretokenizers"]
    assert split["pattern"] == {"Regex": QWEN2_PATTERN} and split["behavior"] == "Isolated" and not split["invert"]
    assert (letters["type"], letters["add_prefix_space"], letters["use_regex"]) == ("ByteLevel", False, False)
    assert content["normalizer"] is None and content["decoder"]["type"] == "ByteLevel"


def test_text_is_cut_where_qwen2_cuts(folder: Path, korean: Callable[..., list[str]]) -> None:
    oracle = pytest.importorskip("transformers.models.qwen2.tokenization_qwen2")
    ours = Backend.from_file(str(folder / "tokenizer.json")).pre_tokenizer
    theirs = oracle.Qwen2Tokenizer()._tokenizer.pre_tokenizer
    for text in [*NASTY, *korean(100, 8), CODE]:
        assert ours.pre_tokenize_str(text) == theirs.pre_tokenize_str(text)


def test_digits_are_single_and_indentation_and_chat_borders_survive(folder: Path) -> None:
    tokenizer = load_tokenizer(folder)
    pieces = {number: piece for piece, number in tokenizer.vocabulary().items()}
    for number in tokenizer.encode("2024년 1,234,567원 3.14"):
        assert sum(letter.isdigit() for letter in pieces[number]) <= 1
    assert tokenizer.decode(tokenizer.encode(CODE)) == CODE
    chat = "<|im_start|>user\n안녕<|im_end|>\n"
    ids = tokenizer.encode(chat, parse_special=True)
    assert [ids.count(tokenizer.special_tokens[name]) for name in ("<|im_start|>", "<|im_end|>")] == [1, 1]
