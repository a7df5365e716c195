"""Megatron-LM's option names give the files that its algorithm gives with megatron-core's tokenizers and builder."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from megatron.core.datasets.indexed_dataset import DType, IndexedDatasetBuilder
from megatron.core.tokenizers import MegatronTokenizer
from patience import PATIENCE

from megatron_ko.cli.megatron_names import preprocess_options, training_words
from megatron_ko.errors import ConfigError

ROOT = Path(__file__).parents[2]


def tool(name: str, *words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, f"tools/{name}.py", *map(str, words)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=PATIENCE)


def as_megatron_does(records: list[dict[str, str]], key: str, library: str, model: Path, eod: bool, to: Path) -> None:
    """One document at a time, as its preprocess_data.py does it."""
    tokenizer = MegatronTokenizer.from_pretrained(tokenizer_path=str(model), metadata_path={"library": library})
    builder = IndexedDatasetBuilder(f"{to}.bin", dtype=DType.optimal_dtype(tokenizer.vocab_size))
    for record in records:
        ids = tokenizer.tokenize(record[key])
        if ids and eod:
            ids.append(tokenizer.eod)
        builder.add_document(torch.tensor(ids), [len(ids)])
    builder.finalize(f"{to}.idx")


@pytest.mark.parametrize(
    ("kind", "library", "eod"),
    [("SentencePieceTokenizer", "sentencepiece", True), ("HuggingFaceTokenizer", "huggingface", False)],
)
def test_the_files_are_megatrons(
    tmp_path: Path,
    korean: Callable[..., list[str]],
    tokenizer_folder: Callable[[str], Path],
    kind: str,
    library: str,
    eod: bool,
) -> None:
    records = [{"text": text, "title": text[:12]} for text in korean(400, 5)]
    (tmp_path / "my-corpus.json").write_text("\n".join(map(json.dumps, records)), encoding="utf-8")
    folder = tokenizer_folder("unigram" if eod else "byte-bpe")
    model = folder / "tokenizer.model" if eod else folder
    keys = ["text", "title"] if eod else ["text"]
    words = ["--input", tmp_path / "my-corpus.json", "--json-keys", *keys, "--tokenizer-type", kind]
    words += ["--tokenizer-model", model, "--output-prefix", tmp_path / "my", "--workers", 2, "--partitions", 2]
    done = tool("preprocess_data", *words, *(["--append-eod"] if eod else []))
    assert done.returncode == 0, done.stderr
    assert "--partitions has no effect" in done.stderr
    for key in keys:
        as_megatron_does(records, key, library, model, eod, tmp_path / f"oracle_{key}_document")
        for suffix in (".bin", ".idx"):
            ours, theirs = (tmp_path / f"{name}_{key}_document{suffix}" for name in ("my", "oracle"))
            assert ours.read_bytes() == theirs.read_bytes()


def test_training_takes_megatrons_names_and_ours(tmp_path: Path, korean: Callable[..., list[str]]) -> None:
    lines = [json.dumps({"body": text}) for text in korean(1500, 6)]
    (tmp_path / "corpus.json").write_text("\n".join(lines), encoding="utf-8")
    words = ["--input", tmp_path / "corpus.json", "--json-keys", "body", "--vocab-size", 600]
    done = tool("train_tokenizer", *words, "--model-type", "bpe", "--output-prefix", tmp_path / "tok")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "tok/tokenizer.model").is_file()
    mixed = tool("preprocess_data", "--input", tmp_path / "corpus.json", "--json-key", "body", "--tokenizer",
                 tmp_path / "tok", "--output", tmp_path / "own")  # fmt: skip
    assert mixed.returncode == 0 and (tmp_path / "own.bin").is_file()


def test_what_each_name_becomes(tmp_path: Path) -> None:
    words = ["--input", "a.json", "--tokenizer-model", "tok", "--output-prefix", "d/my"]
    options = preprocess_options([*words, "--json-keys", "a", "b"])
    assert (options.keys, options.names) == (("a", "b"), ("my_a_document", "my_b_document"))
    assert not options.append_eod and [str(path) for path in options.outputs()] == [
        "d/my_a_document",
        "d/my_b_document",
    ]
    train = ["--input", "a.json", "--vocab-size", "900", "--output-prefix", "tok"]
    assert training_words([*train, "--tokenizer-type", "HuggingFaceTokenizer"])[6:8] == ["--model", "byte-bpe"]
    assert training_words(train)[6:8] == ["--model", "unigram"]
    (tmp_path / "bare.model").write_bytes(b"x")
    for refused, what in (
        (["--split-sentences"], "split-sentences"),
        (["--vocab-file=x"], "vocab-file"),
        (["--tokenizer-type", "NullTokenizer"], "NullTokenizer"),
        (["--tokenizer-model", str(tmp_path / "bare.model")], "SentencePiece model alone"),
    ):
        with pytest.raises(ConfigError, match=what):
            preprocess_options([*words, *refused])
    for refused, what in ((["--append-eod"], "append-eod"), (["--tokenizer-type", "TikTokenizer"], "TikTokenizer")):
        with pytest.raises(ConfigError, match=what):
            training_words([*train, *refused])
    unknown = tool("preprocess_data", *words, "--no-such-option")
    assert unknown.returncode == 2 and "unrecognized arguments" in unknown.stderr
    missing = tool("preprocess_data", *words)
    assert missing.returncode == 2 and "Traceback" not in missing.stderr and "no such file" in missing.stderr
