"""A sweep: every trial once, whatever is killed in between; shared among jobs; a metric that means the same."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from patience import PATIENCE

from megatron_ko.config.sweep import load_sweep, trials_of
from megatron_ko.errors import ConfigError

SWEEP = """
run: {tiny}/tiny.yaml
dir: trials
{what}
metric: {metric}
"""
GRID = "grid: {optim.lr: [1.0e-3, 3.0e-3], training.steps: [4, 6]}"


def write(folder: Path, tiny: Path, what: str = GRID, metric: str = "valid_loss") -> Path:
    path = folder / "sweep.yaml"
    path.write_text(SWEEP.format(tiny=tiny, what=what, metric=metric), encoding="utf-8")
    return path


def command(path: Path, *words: str) -> list[str]:
    return [sys.executable, "-m", "megatron_ko.cli.main", "sweep", str(path), *words]


def sweep(path: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(path, *words), capture_output=True, text=True)


def test_a_killed_sweep_goes_on_and_names_the_best(tiny: Path, tmp_path: Path) -> None:
    path = write(tmp_path, tiny)
    process = subprocess.Popen(command(path), stdout=subprocess.DEVNULL, start_new_session=True)
    finished = tmp_path / "trials/lr=0.001_steps=4/sweep.done"
    deadline = time.monotonic() + PATIENCE
    while not finished.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = finished.stat().st_mtime_ns
    ended = sweep(path, "--json")
    assert ended.returncode == 0, ended.stderr
    found = json.loads(ended.stdout)
    assert [trial["state"] for trial in found["trials"]] == ["done"] * 4
    assert [trial["steps"] for trial in found["trials"]] == [4, 6, 4, 6]
    assert finished.stat().st_mtime_ns == before, "a finished trial is not started again"
    losses = {trial["name"]: trial["best"] for trial in found["trials"]}
    assert found["best"] == min(losses, key=lambda name: losses[name])
    assert json.loads((tmp_path / "trials/sweep.json").read_text(encoding="utf-8")) == found
    assert (tmp_path / "trials/sweep.png").read_bytes().startswith(b"\x89PNG")
    table = sweep(path, "--table").stdout
    assert f"best: {found['best']}, valid_loss" in table and table.splitlines()[0].split()[:2] == [
        "optim.lr",
        "training.steps",
    ]


def test_jobs_share_the_trials(tiny: Path, tmp_path: Path) -> None:
    path = write(tmp_path, tiny, "trials: [{training.steps: 3}, {training.steps: 4}, {training.steps: 5}]")
    first = json.loads(sweep(path, "--rank", "0", "--size", "2", "--json").stdout)
    assert [trial["state"] for trial in first["trials"]] == ["done", "waiting", "done"]
    second = sweep(path, "--rank", "1", "--size", "2")
    assert second.returncode == 0 and "waiting" not in second.stdout


@pytest.mark.parametrize(
    ("what", "metric", "reason"),
    [
        ("grid: {objective.beta: [0.1, 0.2], objective.kind: [orpo]}", "valid_loss", "scaled by it"),
        ("grid: {objective.kind: [orpo, simpo]}", "margin", "part of what the number is"),
        ("grid: {eval.samples: [4, 8]}", "valid_loss", "another one"),
        ("", "valid_loss", "neither grid nor trials"),
        ("grid: {optim.lrr: [1.0]}", "valid_loss", "optim.lrr"),
        ("grid: {training.micro_batch_size: [4, 3]}", "valid_loss", "micro_batch_size"),
        ("trials: [{optim.lr: 1.0e-3}, {optim.lr: 0.001}]", "valid_loss", "one name"),
    ],
)
def test_what_cannot_be_compared_or_run_is_refused(
    what: str, metric: str, reason: str, tiny: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=reason):
        load_sweep(write(tmp_path, tiny, what, metric))


def test_what_may_be_compared_is_accepted(tiny: Path, tmp_path: Path) -> None:
    what = "grid: {objective.kind: [orpo], objective.beta: [0.1, 0.2]}"
    plan = load_sweep(write(tmp_path, tiny, what, "accuracy"))
    assert [trial.values["objective.beta"] for trial in trials_of(plan)] == [0.1, 0.2]
    assert plan.dir == tmp_path / "trials"
