"""A tokenizer and a corpus for tiny runs, made once."""

from collections.abc import Callable
from pathlib import Path

import pytest
from train_runs import CONFIG, ROOT, Run

from megatron_ko.data.preprocess import PreprocessOptions, preprocess
from megatron_ko.data.tokenizer import TokenizerOptions, train_tokenizer

NewRun = Callable[..., Run]


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``tokenizer/``, ``corpus.bin`` and ``tiny.yaml``."""
    folder = tmp_path_factory.mktemp("tiny")
    corpus = tuple(sorted((ROOT / "demo/corpus").glob("*.jsonl")))
    tokenizer = folder / "tokenizer"
    train_tokenizer(corpus, tokenizer, TokenizerOptions(model="byte-bpe", vocab_size=600))
    preprocess(PreprocessOptions(inputs=corpus, tokenizer=tokenizer, output=folder / "corpus"))
    (folder / "tiny.yaml").write_text(CONFIG.format(folder=folder), encoding="utf-8")
    return folder


@pytest.fixture
def new_run(tiny: Path, tmp_path: Path) -> NewRun:
    """Makes runs below this test's folder: ``new_run(name, *overrides)``."""

    def make(name: str, *overrides: str) -> Run:
        return Run(tiny / "tiny.yaml", tmp_path / name, overrides)

    return make
