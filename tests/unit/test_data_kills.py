"""Preprocessing is killed at any moment and started again: the files are those of an undisturbed run, byte for byte."""

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from patience import PATIENCE

from megatron_ko.data.tokens.inspect import verify_data

ROOT = Path(__file__).parents[2]
CODE = "import data_kills; data_kills.main()"
Run = Callable[..., subprocess.Popen[str]]


def hashes(folder: Path) -> dict[str, str]:
    paths = sorted((folder / "out").rglob("*"))
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def start(folder: Path, event: int = 0, workers: int = 1) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "tests/unit")}
    command = [sys.executable, "-c", CODE, str(event), str(folder), str(workers)]
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finish(folder: Path, workers: int = 1) -> int:
    """Run to the end; returns the number of events.

    A kill that came after everything was done, and only the empty folder of the job was left, makes no difference to
    the files: the next start finds its output there.
    """
    process = start(folder, workers=workers)
    output, errors = process.communicate(timeout=PATIENCE)
    if process.returncode:
        assert "exists already" in errors and not list((folder / "out").rglob("part-*"))
        shutil.rmtree(folder / "out" / "data.parts", ignore_errors=True)
    return int(output or 0)


def encoded(folder: Path) -> int:
    return len((folder / "encoded").read_text(encoding="utf-8").splitlines())


@pytest.fixture(scope="module")
def corpus(
    tmp_path_factory: pytest.TempPathFactory, korean: Callable[..., list[str]], tokenizer_folder: Callable[[str], Path]
) -> Path:
    """A folder with the inputs; its output is made once, by an undisturbed run."""
    folder = tmp_path_factory.mktemp("corpus")
    for name, number, seed in (("a", 4000, 31), ("b", 800, 32)):
        lines = [json.dumps({"text": text}, ensure_ascii=False) for text in korean(number, seed)]
        lines[number // 2] = "{broken"
        (folder / f"{name}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    shutil.copytree(tokenizer_folder("unigram"), folder / "tokenizer")
    (folder / "events").write_text(str(finish(folder)), encoding="utf-8")
    return folder


@pytest.fixture
def place(corpus: Path) -> Callable[[], Path]:
    """Clears what a run wrote; paths stay, because they are written into the manifests."""

    def fresh() -> Path:
        target = corpus.with_name(corpus.name + "-killed")
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir()
        for name in ("a.jsonl", "b.jsonl"):
            os.link(corpus / name, target / name)
        (target / "tokenizer").symlink_to(corpus / "tokenizer")
        return target

    return fresh


@pytest.fixture
def expected(place: Callable[[], Path]) -> dict[str, str]:
    folder = place()
    finish(folder)
    assert len(verify_data(folder / "out" / "data")) == 3
    return hashes(folder)


def kill_at_events(place: Callable[[], Path], events: list[int], workers: int) -> tuple[Path, int]:
    """One run, killed at each of ``events`` in turn and started again; returns how many kills came in time."""
    folder = place()
    kills = 0
    for event in events:
        process = start(folder, event, workers)
        process.communicate(timeout=PATIENCE)
        kills += process.returncode == -signal.SIGKILL
        if process.returncode != -signal.SIGKILL:
            break
        assert half_named(folder) == []
    if not list((folder / "out").glob("*.manifest.json")) or (folder / "out" / "data.parts").exists():
        finish(folder, workers)
    return folder, kills


def half_named(folder: Path) -> list[str]:
    """Files under a final name that are not whole: a .bin without manifest is one only while names are being given."""
    out = folder / "out"
    if (out / "data.parts" / "publish.json").exists():
        return []
    manifests = {path.name.removesuffix(".manifest.json") for path in out.glob("*.manifest.json")}
    return [path.name for path in out.glob("*.bin") if path.name.removesuffix(".bin") not in manifests]


def test_killed_in_every_stage(corpus: Path, place: Callable[[], Path], expected: dict[str, str]) -> None:
    """At the first steps, while encoding, while merging, while files get their names, while parts are removed."""
    total = int((corpus / "events").read_text(encoding="utf-8"))
    chunks = encoded(corpus)
    assert chunks > 12 and total > 100
    for events in ([2, total // 3, total // 4], [total // 2], [total * 4 // 5], [total - 30], [total - 3]):
        folder, kills = kill_at_events(place, events, 1)
        assert kills == len(events)
        assert hashes(folder) == expected
        assert encoded(folder) <= chunks + kills


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_thirty_kills_at_random_events(
    corpus: Path, place: Callable[[], Path], expected: dict[str, str], workers: int
) -> None:
    draw = random.Random(workers)
    total = int((corpus / "events").read_text(encoding="utf-8"))
    chunks, kills = encoded(corpus), 0
    while kills < 30:
        folder, more = kill_at_events(place, [draw.randrange(1, total) for _ in range(draw.randrange(1, 5))], workers)
        kills += more
        assert hashes(folder) == expected
        assert encoded(folder) <= chunks + more * workers * 2


@pytest.mark.slow
def test_thirty_kills_at_random_times(corpus: Path, place: Callable[[], Path], expected: dict[str, str]) -> None:
    draw = random.Random(3)
    chunks, kills = encoded(corpus), 0
    while kills < 30:
        folder, before, patience = place(), kills, 1.0
        while True:
            process = start(folder, workers=2)
            time.sleep(draw.uniform(0.3, 2.0) * patience)
            patience *= 1.05  # on a busy machine it would be killed before it works, for ever
            process.send_signal(signal.SIGKILL)
            process.communicate(timeout=PATIENCE)
            if process.returncode != -signal.SIGKILL:
                break
            kills += 1
        assert hashes(folder) == expected
        assert encoded(folder) <= chunks + (kills - before) * 2 * 2
