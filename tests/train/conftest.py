"""A tokenizer and a corpus for tiny runs, made once."""

from pathlib import Path

import pytest
from train_runs import NewRun, Run, make_corpus


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``tokenizer/``, ``corpus.bin`` and ``tiny.yaml``."""
    return make_corpus(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def new_run(tiny: Path, tmp_path: Path) -> NewRun:
    """Makes runs below this test's folder: ``new_run(name, *overrides)``."""

    def make(name: str, *overrides: str) -> Run:
        return Run(tiny / "tiny.yaml", tmp_path / name, overrides)

    return make
