"""Whatever stops deduplication, and wherever: started again it writes the bytes of an undisturbed run."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from test_dedup_run import everything, full_options, write

from megatron_ko.data.dedup.decontaminate import DecontaminateOptions, decontaminate
from megatron_ko.data.dedup.dedup import dedup
from megatron_ko.data.dedup.evaluation import NgramRule
from megatron_ko.data.dedup.options import DedupOptions, InputFiles, Resources
from megatron_ko.errors import DataError

ROOT = Path(__file__).parents[2]
Korean = Callable[..., list[str]]
PASSES = {
    "sign", "exact", "candidates", "verify", "settle", "paragraphs", "paragraphs-join", "lines", "lines-join", "write",
    "removed",
}  # fmt: skip


class Stop:
    """Stops the work as Ctrl-C does, at the first part of a pass that was not stopped before."""

    def __init__(self) -> None:
        self.stopped: set[str] = set()

    def __call__(self, name: str, share: float) -> None:
        if name not in self.stopped:
            self.stopped.add(name)
            raise KeyboardInterrupt


def test_every_pass_can_be_interrupted(tmp_path: Path, korean: Korean) -> None:
    options = replace(full_options(tmp_path, korean), resources=Resources(1, memory=20_000))
    dedup(options)
    stop = Stop()
    for _ in range(len(PASSES)):
        with pytest.raises(KeyboardInterrupt):
            dedup(replace(options, output=tmp_path / "again"), stop)
        assert not (tmp_path / "again").exists()
    assert stop.stopped == PASSES
    dedup(replace(options, output=tmp_path / "again"), stop)
    assert everything(tmp_path / "again") == everything(tmp_path / "plain")


def test_decontamination_can_be_interrupted(tmp_path: Path, korean: Korean) -> None:
    texts = korean(100, 3)
    against = write(tmp_path / "eval.jsonl", texts[:3])
    files = InputFiles((write(tmp_path / "a.jsonl", texts),))
    options = DecontaminateOptions(files, tmp_path / "plain", (against,), grams=NgramRule("eojeol", 8, 4))
    decontaminate(options)
    stop = Stop()
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            decontaminate(replace(options, output=tmp_path / "again"), stop)
    decontaminate(replace(options, output=tmp_path / "again"), stop)
    assert stop.stopped == {"match", "write"}
    assert everything(tmp_path / "again") == everything(tmp_path / "plain")


def test_other_options_do_not_go_on_from_what_was_left(tmp_path: Path, korean: Korean) -> None:
    options = full_options(tmp_path, korean)
    stop = Stop()
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            dedup(options, stop)
    with pytest.raises(DataError, match="other options or inputs") as caught:
        dedup(replace(options, keep="first"))
    assert "keep" in str(caught.value) and "--restart" in str(caught.value)


def test_a_kill_after_the_last_step_changes_nothing(
    tmp_path: Path, korean: Korean, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The output has its name, its parts are still there: the same command is done, another one is refused."""
    options = full_options(tmp_path, korean)
    monkeypatch.setattr("megatron_ko.data.dedup.dedup.remove_job", lambda folder: None)
    first = dedup(options)
    monkeypatch.undo()
    before = everything(options.output)
    with pytest.raises(DataError, match="exists already"):
        dedup(replace(options, keep="first"))
    assert (tmp_path / "plain.parts").exists()
    assert dedup(options) == first
    assert everything(options.output) == before and not (tmp_path / "plain.parts").exists()
    with pytest.raises(DataError, match="exists already"):
        dedup(options)


def command(options: DedupOptions, output: Path) -> list[str]:
    files = [str(path) for path in options.input.paths]
    words = ["--exact", "document,paragraph,line", "--near", "--keep", "longest", "--memory-mb", "1", "--workers", "2"]
    program = [sys.executable, "-m", "megatron_ko.cli.main", "data", "dedup"]
    return [*program, "--input", *files, "--output", str(output), *words, "--json"]


def kill_until_done(options: DedupOptions, output: Path, kills: int, longest: float) -> int:
    """Kill the whole process group, as soon as it works and then after random times, until a run ends by itself.

    Returns:
        how often it was killed.
    """
    draw, parts = random.Random(0), output.with_name(f"{output.name}.parts")
    for killed in range(kills):
        process = subprocess.Popen(
            command(options, output), cwd=ROOT, stdout=subprocess.DEVNULL, start_new_session=True
        )
        while not parts.exists() and process.poll() is None:
            time.sleep(0.002)
        try:
            process.wait(timeout=draw.uniform(0.1, longest) if killed else 0.0)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            if output.exists():  # it had finished, and was about to say so
                return killed + 1
        else:
            assert process.returncode == 0
            return killed
    subprocess.run(command(options, output), cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return kills


def large(folder: Path, korean: Korean, number: int) -> DedupOptions:
    options = full_options(folder, korean)
    path = write(folder / "three.jsonl", korean(number, 77))
    return replace(options, input=InputFiles((*options.input.paths, path)))


def test_killed_processes_lose_nothing(tmp_path: Path, korean: Korean) -> None:
    options = large(tmp_path, korean, 2000)
    dedup(options)
    assert kill_until_done(options, tmp_path / "killed", 4, 3.0) >= 1
    assert everything(tmp_path / "killed") == everything(tmp_path / "plain")


@pytest.mark.slow
def test_thirty_kills(tmp_path: Path, korean: Korean) -> None:
    """With worker processes in every pass: the input is larger than what one process does alone."""
    options = large(tmp_path, korean, 60_000)
    dedup(options)
    done = 0
    for attempt in range(100):
        output = tmp_path / f"killed-{attempt}"
        done += kill_until_done(options, output, 30 - done, 6.0)
        assert everything(output) == everything(tmp_path / "plain")
        if done >= 30:
            break
    assert done >= 30


LIMITED = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), resource.RLIM_INFINITY))
from megatron_ko.cli.main import main
sys.argv[1:] = sys.argv[2:]
main()
"""


@pytest.mark.parametrize("limit", [3000, 20_000])
def test_a_full_disk_is_said_and_survived(tmp_path: Path, korean: Korean, limit: int) -> None:
    options = full_options(tmp_path, korean)
    words = command(options, tmp_path / "out")[3:]
    program = [sys.executable, "-c", LIMITED, str(limit), *words]
    result = subprocess.run(program, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 2 and "the disk is full" in result.stderr and "Traceback" not in result.stderr
    assert not (tmp_path / "out").exists()
    result = subprocess.run(command(options, tmp_path / "out"), cwd=ROOT, capture_output=True, text=True, check=True)
    dedup(options)
    assert everything(tmp_path / "out") == everything(tmp_path / "plain")
    assert json.loads(result.stdout)["documents"]["in"] > 100


def test_a_changed_input_is_noticed(tmp_path: Path, korean: Korean) -> None:
    options = full_options(tmp_path, korean)
    path = options.input.paths[0]
    content = path.read_bytes()

    def shorten(name: str, share: float) -> None:
        if name == "exact":
            path.write_bytes(b"\n".join(content.split(b"\n")[:-2]) + b"\n")

    with pytest.raises(DataError, match="has changed since the first pass"):
        dedup(replace(options, levels=("document",)), shorten)
    assert not options.output.exists()
