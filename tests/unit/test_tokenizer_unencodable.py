"""Characters without a token: counted, named, and by policy refused, replaced or kept; never dropped in silence."""

import json
from pathlib import Path

import orjson
import pytest
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers

from megatron_ko.data.tokenizer.check import check_folder
from megatron_ko.data.tokenizer.extend import ExtendOptions, extend_tokenizer
from megatron_ko.data.tokenizer.tokenizer import load_tokenizer
from megatron_ko.data.tokenizer.unencodable import Unencodable, missing_bytes
from megatron_ko.data.tokens.indexed import IndexedReader
from megatron_ko.data.tokens.preprocess import PreprocessOptions, preprocess
from megatron_ko.errors import DataError, TokenizerError

TEXTS = ["가나다", "가\u0004나", "\u0004\u0006", "평범한 글"]


def folder_of(path: Path, *, without: bytes = b"", gap: int = 0) -> Path:
    """A byte-level vocabulary without merges, like SmolLM2's in what it lacks."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    kept = [letter for letter in letters if letter not in map(_letter, without)]
    vocabulary = {letter: number for number, letter in enumerate(kept)}
    vocabulary["<|endoftext|>"] = len(vocabulary) + gap
    backend = Backend(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<|endoftext|>"])
    path.mkdir()
    backend.save(str(path / "tokenizer.json"))
    config = {"eos_token": "<|endoftext|>", "tokenizer_class": "PreTrainedTokenizerFast"}
    (path / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return path


def _letter(byte: int) -> str:
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [number for number in range(256) if number not in printable]
    return chr(byte) if byte in printable else chr(0x100 + others.index(byte))


@pytest.fixture
def lacking(tmp_path: Path) -> Path:
    return folder_of(tmp_path / "tokenizer", without=b"\x04\x06")


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "in.jsonl"
    path.write_bytes(b"".join(orjson.dumps({"text": text}) + b"\n" for text in TEXTS))
    return path


def decoded(tokenizer: Path, prefix: Path) -> list[str]:
    backend, reader = load_tokenizer(tokenizer), IndexedReader(prefix)
    return [backend.decode(reader[n].tolist()[:-1]) for n in range(len(reader))]


def test_what_is_missing(lacking: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(lacking)
    assert missing_bytes(tokenizer) == [4, 6]
    unencodable = Unencodable(tokenizer)
    assert [unencodable.characters(text) for text in (*TEXTS, *TEXTS)] == [[], ["\x04"], ["\x04", "\x06"], []] * 2
    assert unencodable.replaced(TEXTS[1], ["\x04"]) == "가\ufffd나"
    whole = load_tokenizer(folder_of(tmp_path / "whole"))
    assert missing_bytes(whole) == [] and Unencodable(whole).characters("".join(map(chr, range(0xD800)))) == []


def test_refused_documents_are_listed(lacking: Path, corpus: Path, tmp_path: Path) -> None:
    [written] = preprocess(PreprocessOptions((corpus,), lacking, tmp_path / "out", verify=True))
    assert decoded(lacking, tmp_path / "out") == [TEXTS[0], TEXTS[3]]
    assert written.manifest.rejected_reasons == {"no token": 2} and written.manifest.unencodable == {}
    lines = [orjson.loads(line) for line in (tmp_path / "out.rejected.jsonl").read_bytes().splitlines()]
    assert [(line["position"], line["reason"]) for line in lines] == [
        (2, "no token: U+0004"),
        (3, "no token: U+0004 U+0006"),
    ]
    assert written.verified is not None and (written.verified.decoded, written.verified.exact) == (2, 2)


def test_replaced_and_kept_documents_are_counted(lacking: Path, corpus: Path, tmp_path: Path) -> None:
    options = PreprocessOptions((corpus,), lacking, tmp_path / "new", verify=True, unencodable="replace")
    [replaced] = preprocess(options)
    assert decoded(lacking, tmp_path / "new") == [TEXTS[0], "가\ufffd나", "\ufffd\ufffd", TEXTS[3]]
    assert replaced.manifest.unencodable == {"U+0004": 2, "U+0006": 1, "documents": 2}
    assert replaced.verified is not None and replaced.verified.different == ()
    [kept] = preprocess(PreprocessOptions((corpus,), lacking, tmp_path / "old", verify=True, unencodable="keep"))
    assert decoded(lacking, tmp_path / "old") == [TEXTS[0], "가나", "", TEXTS[3]]
    assert kept.manifest.unencodable == replaced.manifest.unencodable and kept.manifest.rejected == 0
    assert kept.verified is not None and kept.verified.different == (1, 2) and kept.verified.exact == 2


def test_a_corpus_of_such_documents_is_empty(lacking: Path, tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("\x04\n\x06\n", encoding="utf-8")
    with pytest.raises(DataError, match="--unencodable replace"):
        preprocess(PreprocessOptions((tmp_path / "in.txt",), lacking, tmp_path / "out"))


def test_check_and_extend_list_the_bytes(lacking: Path, tmp_path: Path) -> None:
    found = {result.name: result for result in check_folder(lacking)}["every byte has a token"]
    assert (found.tried, found.failed, found.example) == (256, 2, "none for 0x04 0x06")
    (tmp_path / "ko.txt").write_text("한국어 글자와 한국어 낱말을 배운다\n" * 200, encoding="utf-8")
    report = extend_tokenizer(lacking, (tmp_path / "ko.txt",), tmp_path / "more", ExtendOptions(new_ids=8))
    assert report.missing_bytes == [4, 6]


def test_a_base_with_free_ids_is_refused(tmp_path: Path) -> None:
    (tmp_path / "ko.txt").write_text("한국어 글자와 한국어 낱말을 배운다\n" * 200, encoding="utf-8")
    base = folder_of(tmp_path / "gap", gap=100)
    with pytest.raises(TokenizerError, match="no token has id 256, and 100 ids"):
        extend_tokenizer(base, (tmp_path / "ko.txt",), tmp_path / "more", ExtendOptions(new_ids=8))
    assert not (tmp_path / "more").exists()
