"""User-defined tokens are one id wherever they stand; reserved ones come from no text; both in every file."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import sentencepiece
from test_tokenizer_unencodable import folder_of
from typer.testing import CliRunner

from megatron_ko.cli.main import app
from megatron_ko.data.tokenizer import TokenizerOptions, load_tokenizer, train_tokenizer
from megatron_ko.data.tokenizer.check import check_folder
from megatron_ko.data.tokenizer.corpus import CorpusSampling
from megatron_ko.data.tokenizer.extend import ExtendOptions, extend_tokenizer
from megatron_ko.data.tokenizer.extra import ExtraTokens, parse_tokens
from megatron_ko.errors import TokenizerError

Korean = Callable[..., list[str]]
EXTRA = ExtraTokens(("<call>", "<call_end>", "㈜한글", "SELECT"), 3)
RESERVED = ["<|reserved_0|>", "<|reserved_1|>", "<|reserved_2|>"]


@pytest.fixture
def corpus(tmp_path: Path, korean: Korean) -> Path:
    path = tmp_path / "text.txt"
    texts = [text.replace("\n", " ") + " <call> SELECT 1 <call_end>" for text in korean(600, 1)]
    path.write_text("\n".join(texts), encoding="utf-8")
    return path


def check_tokens(folder: Path) -> None:
    tokenizer = load_tokenizer(folder)
    for token in EXTRA.user_defined:
        for text in (token, f"글{token}끝", f"가 {token} {token}\n", f"{'긴 글 ' * 9000}{token}"):
            ids = tokenizer.encode(text)
            assert ids.count(tokenizer.user_defined[token]) == text.count(token)
            assert tokenizer.decode(ids) == text and ids == tokenizer.reference_batch([text])[0]
    whole = "<call_end><call>SELECTㄱSELEC"
    assert [ids for ids in tokenizer.encode(whole) if ids in tokenizer.user_defined.values()] == [
        tokenizer.user_defined[token] for token in ("<call_end>", "<call>", "SELECT")
    ]
    for token in RESERVED:
        assert tokenizer.encode(token, parse_special=True) == [tokenizer.special_tokens[token]]
        assert tokenizer.special_tokens[token] not in tokenizer.encode(f"글 {token}")
        assert tokenizer.decode(tokenizer.encode(f"글 {token}")) == f"글 {token}"
    many = ["첫 글", "가 <call>나\n다</s>", "끝 SELECT"]
    encoded = tokenizer.encode_documents(many, append_eod=True)
    expected = [[*ids, tokenizer.eod] for ids in tokenizer.reference_batch(many)]
    assert encoded.ids.tolist() == [number for ids in expected for number in ids]
    assert encoded.lengths.tolist() == list(map(len, expected))
    results = {result.name: result for result in check_folder(folder)}
    assert results["user-defined tokens are single ids in text"].tried == 4
    assert [result for result in results.values() if not result.ok and "chat borders" not in result.name] == []


@pytest.mark.parametrize("model", ["unigram", "bpe", "byte-bpe"])
def test_trained(tmp_path: Path, corpus: Path, model: str) -> None:
    report = train_tokenizer([corpus], tmp_path / "tok", TokenizerOptions(model, 640, extra=EXTRA))  # type: ignore[arg-type]
    assert report.vocab_size == 640
    check_tokens(tmp_path / "tok")
    if model == "byte-bpe":
        return
    processor = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "tok/tokenizer.model"))
    tokenizer = load_tokenizer(tmp_path / "tok")
    for token, number in tokenizer.user_defined.items():
        assert processor.piece_to_id(token) == number and number in processor.encode(f"글{token}끝")
    for token in RESERVED:
        number = tokenizer.special_tokens[token]
        assert processor.piece_to_id(token) == number and processor.is_control(number)
        assert number not in processor.encode(f"글 {token}")


def test_extended(tmp_path: Path, corpus: Path) -> None:
    base = folder_of(tmp_path / "base")
    report = extend_tokenizer(base, [corpus], tmp_path / "new", ExtendOptions(40, CorpusSampling(), extra=EXTRA))
    assert report.new_ids == 40 and report.vocab_size == report.base_vocab_size + 40
    check_tokens(tmp_path / "new")
    lines = [json.loads(line) for line in (tmp_path / "new/new_ids.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [line["id"] for line in lines] == list(range(report.base_vocab_size, report.vocab_size))
    old = load_tokenizer(base)
    for line in lines[-7:]:
        assert line["count"] == 0 and line["old_ids"] == old.encode(line["text"])
    assert [line["text"] for line in lines[-7:]] == [*EXTRA.user_defined, *RESERVED]
    again = ExtraTokens(("<new>",), 1)
    extend_tokenizer(tmp_path / "new", [corpus], tmp_path / "newer", ExtendOptions(2, CorpusSampling(), extra=again))
    assert load_tokenizer(tmp_path / "newer").special_tokens.keys() >= {*RESERVED, "<|reserved_3|>"}
    with pytest.raises(TokenizerError, match="cannot be a user-defined token"):
        extend_tokenizer(tmp_path / "new", [corpus], tmp_path / "no", ExtendOptions(9, extra=EXTRA))


@pytest.mark.parametrize("bad", ["", "두 말", "<s>", "<|reserved_1|>", "<0x0A>", "\u2581가", "<call>,<call>"])
def test_what_cannot_be_a_token(bad: str) -> None:
    with pytest.raises(TokenizerError, match="cannot be a user-defined token"):
        ExtraTokens(parse_tokens(bad), 2).check()


def test_a_token_that_does_not_come_back_is_refused(tmp_path: Path, corpus: Path) -> None:
    """`tokenizers` takes é for the letter of a byte."""
    options = TokenizerOptions("byte-bpe", 640, extra=ExtraTokens(("é",)))
    with pytest.raises(TokenizerError, match="text with a user-defined token does not come back"):
        train_tokenizer([corpus], tmp_path / "tok", options)


def test_from_the_command_line(tmp_path: Path, corpus: Path) -> None:
    listed = tmp_path / "tokens.txt"
    listed.write_text("<call>\n<a,b>\n", encoding="utf-8")
    words = ["tokenizer", "train", "--input", str(corpus), "--vocab-size", "600", "--output", str(tmp_path / "tok")]
    done = CliRunner().invoke(app, [*words, "--user-defined-tokens", str(listed), "--reserved-tokens", "2"])
    assert done.exit_code == 0, done.output
    assert "2 user-defined tokens, 2 reserved" in done.output
    tokenizer = load_tokenizer(tmp_path / "tok")
    assert tokenizer.user_defined.keys() == {"<call>", "<a,b>"} and len(tokenizer.special_tokens) == 8
