"""Training: nothing is skipped, nothing unproven gets a name, and every refusal says what to do."""

import json
import random
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from patience import PATIENCE
from tokenizers import Tokenizer as Backend
from tokenizers import normalizers
from typer.testing import CliRunner

from megatron_ko.cli.tokenizer import app
from megatron_ko.data.tokenizer import TokenizerOptions, load_tokenizer, train_tokenizer
from megatron_ko.data.tokenizer.compare import compare_tokenizers
from megatron_ko.data.tokenizer.gates import check_tokenizer
from megatron_ko.data.tokenizer.trainers import SENTENCE_BYTES, sentences_of
from megatron_ko.errors import DataError, TokenizerError

Korean = Callable[..., list[str]]


@pytest.fixture
def corpus(tmp_path: Path, korean: Korean) -> Path:
    path = tmp_path / "corpus.jsonl"
    lines = (json.dumps({"text": text}, ensure_ascii=False) for text in korean(1500, 3))
    path.write_text("\n".join(lines) + '\nnot json\n{"title": "no text"}\n', encoding="utf-8")
    return path


def test_the_command_writes_a_folder_and_reports(corpus: Path, tmp_path: Path) -> None:
    output = tmp_path / "tok"
    words = ["--input", str(corpus), "--model", "unigram", "--vocab-size", "600", "--output", str(output), "--json"]
    result = CliRunner().invoke(app, ["train", *words])
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert (report["documents"], report["rejected"], report["vocab_size"]) == (1500, 2, 600)
    assert report["trained_share"] == 1.0
    assert report["fingerprint"] == load_tokenizer(output).fingerprint
    names = {path.name for path in output.iterdir()}
    assert names == {"tokenizer.json", "tokenizer.model", "tokenizer_config.json", "megatron_ko.json"}


def test_training_is_deterministic(corpus: Path, tmp_path: Path) -> None:
    for model in ("unigram", "bpe", "byte-bpe"):
        options = TokenizerOptions(model=model, vocab_size=600)
        first, second = (train_tokenizer([corpus], tmp_path / f"{model}{n}", options) for n in (1, 2))
        assert first.fingerprint == second.fingerprint


def test_a_line_of_more_than_10000_bytes_is_learnt_from(tmp_path: Path, korean: Korean) -> None:
    """SentencePiece skips such a line without an error; here its words must be in the vocabulary."""
    draw = random.Random(0)
    long = " ".join(draw.choice(["쀍쀍뷁뷁", "꿻꿻힣힣"]) for _ in range(4000))
    path = tmp_path / "long.txt"
    path.write_text("\n".join([*korean(1500, 5), long]), encoding="utf-8")
    train_tokenizer([path], tmp_path / "tok", TokenizerOptions(model="unigram", vocab_size=640))
    tokenizer = load_tokenizer(tmp_path / "tok")
    bytes_of_it = {tokenizer.id_of(f"<0x{byte:02X}>") for byte in range(256)}
    assert not bytes_of_it & set(tokenizer.encode("쀍쀍뷁뷁꿻꿻힣힣"))


def test_sentences_lose_nothing_but_borders() -> None:
    text = "가나 다라" * 5000 + "\n" + "마" * 9000 + "\t바 \x00사\u2585아\u2581자\n\n"
    sentences = list(sentences_of(text))
    assert max(len(sentence.encode()) for sentence in sentences) <= SENTENCE_BYTES
    kept = "".join(sentences)
    assert kept.replace(" ", "") == "".join(c for c in text if c not in " \n\t\x00\u2585\u2581")


def test_a_large_corpus_is_sampled_and_says_so(corpus: Path, tmp_path: Path) -> None:
    options = TokenizerOptions(model="byte-bpe", vocab_size=400, max_bytes=50_000)
    report = train_tokenizer([corpus], tmp_path / "tok", options)
    assert report.trained_documents < report.documents == 1500
    assert 25_000 < report.trained_bytes < 100_000 < report.bytes


@pytest.mark.parametrize(
    ("model", "vocab_size", "what"),
    [("unigram", 300, "too small"), ("unigram", 1, "bytes and special tokens"),
     ("unigram", 50_000, "too small for this vocabulary"),
     ("bpe", 50_000, "too small for this vocabulary"), ("byte-bpe", 200, "too small"),
     ("byte-bpe", 50_000, "too small for this vocabulary")],
)  # fmt: skip
def test_a_vocabulary_that_does_not_fit(corpus: Path, tmp_path: Path, model: str, vocab_size: int, what: str) -> None:
    with pytest.raises(TokenizerError, match=what) as caught:
        train_tokenizer([corpus], tmp_path / "tok", TokenizerOptions(model=model, vocab_size=vocab_size))
    assert caught.value.expected is not None
    assert [path.name for path in tmp_path.iterdir()] == [corpus.name]


def test_the_largest_vocabulary_of_the_message_works(corpus: Path, tmp_path: Path) -> None:
    for model in ("unigram", "bpe", "byte-bpe"):
        with pytest.raises(TokenizerError) as caught:
            train_tokenizer([corpus], tmp_path / "no", TokenizerOptions(model=model, vocab_size=50_000))
        largest = int(str(caught.value.expected).split()[-1])
        train_tokenizer([corpus], tmp_path / model, TokenizerOptions(model=model, vocab_size=largest))
        assert load_tokenizer(tmp_path / model).vocab_size == largest


def test_refusals_leave_nothing(corpus: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty.jsonl"
    empty.write_text("\n\n", encoding="utf-8")
    options = TokenizerOptions(model="unigram", vocab_size=600)
    with pytest.raises(DataError, match="empty"):
        train_tokenizer([empty], tmp_path / "tok", options)
    with pytest.raises(DataError, match="given twice"):
        train_tokenizer([corpus, tmp_path / "." / corpus.name], tmp_path / "tok", options)
    (tmp_path / "tok").mkdir()
    with pytest.raises(DataError, match="exists already"):
        train_tokenizer([corpus], tmp_path / "tok", options)
    assert not list((tmp_path / "tok").iterdir())


def test_a_full_disk_is_told_and_leaves_nothing(corpus: Path, tmp_path: Path) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))

    for model in ("unigram", "byte-bpe"):
        words = ["--input", str(corpus), "--model", model, "--vocab-size", "600", "--output", str(tmp_path / "tok")]
        command = [sys.executable, "-m", "megatron_ko.cli.main", "tokenizer", "train", *words]
        result = subprocess.run(command, preexec_fn=limit, capture_output=True, text=True, timeout=PATIENCE)
        assert result.returncode == 2
        assert "disk is full" in result.stderr and "Traceback" not in result.stderr
        assert [path.name for path in tmp_path.iterdir()] == [corpus.name]


def test_the_gate_finds_a_tokenizer_that_changes_text(tokenizer_folder: Callable[[str], Path], tmp_path: Path) -> None:
    """NFKC, SentencePiece's default, turns compatibility jamo into conjoining ones."""
    source = tokenizer_folder("byte-bpe")
    backend = Backend.from_file(str(source / "tokenizer.json"))
    backend.normalizer = normalizers.NFKC()
    backend.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_bytes((source / "tokenizer_config.json").read_bytes())
    with pytest.raises(TokenizerError, match="does not come back"):
        check_tokenizer(load_tokenizer(tmp_path), ["ㅋㅋ"])


def test_a_changed_folder_is_noticed(tokenizer_folder: Callable[[str], Path], tmp_path: Path) -> None:
    source = tokenizer_folder("unigram")
    for path in source.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    content = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
    content["model"]["vocab"][400][1] -= 1.0
    (tmp_path / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(TokenizerError, match="was changed"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{", encoding="utf-8")
    with pytest.raises(TokenizerError, match="damaged"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(TokenizerError, match="no tokenizer"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("model", ["unigram", "bpe", "byte-bpe"])
def test_a_corpus_without_a_space_can_be_learnt_from(tmp_path: Path, korean: Korean, model: str) -> None:
    """And the share of byte tokens is that of ``compare``."""
    texts = ["".join(text.split()) for text in korean(300, 3)]
    (tmp_path / "in.txt").write_text("\n".join(texts) + "\n", encoding="utf-8")
    report = train_tokenizer([tmp_path / "in.txt"], tmp_path / "tok", TokenizerOptions(model=model, vocab_size=800))
    tokenizer = load_tokenizer(tmp_path / "tok")
    assert all(tokenizer.decode(tokenizer.encode(text)) == text for text in (*texts, " ", "가 나  다"))
    [fit] = compare_tokenizers([tmp_path / "tok"], {"in.txt": texts}).fits
    assert report.byte_fallback_share == pytest.approx(fit.byte_share, abs=0.01)
    assert (report.byte_fallback_share > 0) == (fit.byte_share > 0)
