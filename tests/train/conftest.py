"""A tokenizer and a corpus for tiny runs, made once."""

from pathlib import Path
from shutil import copytree

import orjson
import pytest
from chat_runs import ANSWERS, overrides
from train_runs import NewRun, Run, make_corpus

from megatron_ko.data.chat.preprocess import ChatOptions, preprocess_chat
from megatron_ko.data.tokenizer.chat_template import preset_source, set_template


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


@pytest.fixture(scope="session")
def rows(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``tok/``, ``chat`` and ``pairs``."""
    folder = tmp_path_factory.mktemp("rows")
    set_template(copytree(tiny / "tokenizer", folder / "tok"), preset_source("chatml"))
    chat = [{"prompt": f"{n}번?", "completion": ANSWERS[n % 4]} for n in range(160)]
    pairs = [{"prompt": f"{n}번?", "chosen": ANSWERS[n % 4], "rejected": "묻지 마라."} for n in range(120)]
    verdicts = [{"prompt": one["prompt"], "completion": one["completion"], "label": True} for one in chat[:80]]
    verdicts += [{"prompt": one["prompt"], "completion": one["rejected"], "label": False} for one in pairs[:80]]
    for name, records in (("chat", chat), ("pairs", pairs), ("verdicts", verdicts)):
        (folder / f"{name}.jsonl").write_bytes(b"".join(orjson.dumps(record) + b"\n" for record in records))
        preprocess_chat(
            ChatOptions((folder / f"{name}.jsonl",), folder / "tok", folder / name, preference=name != "chat")
        )
    return folder


@pytest.fixture(scope="session")
def tuned(rows: Path, tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run of SFT, which preference runs start with."""
    run = Run(tiny / "tiny.yaml", tmp_path_factory.mktemp("tuned") / "sft", overrides(rows, "sft"))
    ended = run.train("training.steps=40", "optim.lr=1.0e-2")
    assert ended.returncode == 0, ended.stderr
    return run
