"""Where a run comes from: the code, and a corpus that changed between two sessions."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from megatron_ko import log
from megatron_ko.config import RunConfig, load_config
from megatron_ko.errors import KoError
from megatron_ko.train import lineage
from megatron_ko.train.lineage import identify, write_lineage

ROOT = Path(__file__).parents[2]
LAYOUT = {"world": 1, "tensor": 1}


def source(name: str, digest: str) -> dict[str, object]:
    return {"prefix": name, "sha256": digest * 32, "tokens": 1000, "weight": None}


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    return load_config(ROOT / "configs/runs/demo.yaml", [f"run.dir={tmp_path}"])


def start(config: RunConfig, corpus: list[dict[str, object]], step: int) -> dict[str, object]:
    log.configure(0)
    session = {"layout": LAYOUT, "device": "cpu", "resumed_from_step": step}
    write_lineage(config, identify(config, "f" * 64), corpus, session)
    content: dict[str, object] = json.loads((config.run.dir / "lineage.json").read_text())
    return content


def test_a_corpus_that_changed_is_told_when_the_run_continues(
    config: RunConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    start(config, [source("a", "aa"), source("b", "bb")], 0)
    start(config, [source("moved/a", "aa"), source("b", "bb")], 10)
    assert not capsys.readouterr().err
    content = start(config, [source("moved/a", "cc"), source("b", "bb")], 20)
    told = capsys.readouterr().err
    assert "no longer read: moved/a, 1,000 tokens, sha256 aaaa" in told and "new: moved/a, 1,000 tokens" in told
    sessions = content["sessions"]
    assert isinstance(sessions, list) and [s["corpus_sha256"][0][:2] for s in sessions] == ["aa", "aa", "cc"]
    start(config, [source("d", "dd")], 0)  # from the beginning: nothing was read before
    assert not capsys.readouterr().err


@pytest.mark.parametrize("content", ["{", "[]", '{"sessions": 5}', '{"sessions": [1]}', '{"corpus": [{}]}'])
def test_a_damaged_lineage_is_told(config: RunConfig, content: str) -> None:
    path = config.run.dir / "lineage.json"
    path.write_text(content)
    with pytest.raises(KoError, match="lineage of the run is damaged"):
        start(config, [source("a", "aa")], 0)
    assert path.read_text() == content


def test_code_that_differs_from_its_commit_is_dirty(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    package = tmp_path / "clone" / "megatron_ko"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    monkeypatch.setattr(lineage.megatron_ko, "__file__", str(package / "__init__.py"))

    def git(*words: str) -> str:
        who = ["-c", "user.name=t", "-c", "user.email=t@t"]
        done = subprocess.run(["git", *who, *words], cwd=package.parent, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    def code() -> dict[str, object]:
        found = start(config, [source("a", "aa")], 0)["code"]
        assert isinstance(found, dict)
        return {name: found[name] for name in ("commit", "dirty")}

    git("init", "-q")
    git("commit", "-q", "--allow-empty", "-m", "another project")
    assert code() == {"commit": None, "dirty": None}  # inside a repository that does not track the package
    git("add", "-A")
    git("commit", "-q", "-m", "ours")
    commit = git("rev-parse", "HEAD")
    assert code() == {"commit": commit, "dirty": False}
    (package.parent / "notes.txt").write_text("not code")
    assert code() == {"commit": commit, "dirty": False}
    (package / "new.py").write_text("")
    assert code() == {"commit": commit, "dirty": True}
    (package / "new.py").unlink()
    (package / "__init__.py").write_text("changed = True\n")
    assert code() == {"commit": commit, "dirty": True}
