"""What the trials of a sweep came to: a table, a plot, and the winner."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from megatron_ko.config.sweep import METRICS, SweepConfig, trials_of
from megatron_ko.report.store import RunRecord, read_run


@dataclass(frozen=True)
class TrialResult:
    """One trial.

    Attributes:
        name: of its folder.
        values: by dotted key.
        state: "done", "started" or "waiting".
        best, best_step: of its validations by the metric; None before the first.
        steps: done so far.
        seconds: of its steps.
    """

    name: str
    values: dict[str, Any]
    state: str
    best: float | None = None
    best_step: int | None = None
    steps: int = 0
    seconds: float = 0.0


def read_results(sweep: SweepConfig) -> list[TrialResult]:
    """Every trial as it stands, in order."""
    return [_result(sweep, trial.name, trial.values) for trial in trials_of(sweep)]


def winner(sweep: SweepConfig, results: Sequence[TrialResult]) -> TrialResult | None:
    """The best trial by the metric, the first of equal ones; None before any validation."""
    known = [result for result in results if result.best is not None]
    sign = -1 if METRICS[sweep.metric] else 1
    return min(known, key=lambda result: sign * (result.best or 0.0), default=None)


def _result(sweep: SweepConfig, name: str, values: dict[str, Any]) -> TrialResult:
    folder = sweep.dir / name
    if not (folder / "metrics" / "train.jsonl").is_file() or not (folder / "metrics" / "train.jsonl").stat().st_size:
        return TrialResult(name, values, "waiting")
    run = read_run(folder)
    step, measured = run.valid["step"], run.valid[sweep.metric]
    known = np.isfinite(measured)
    best = best_step = None
    if known.any():
        signed = np.where(known, -measured if METRICS[sweep.metric] else measured, np.inf)
        place = int(np.argmin(signed))
        best, best_step = float(measured[place]), int(step[place])
    done = "done" if (folder / "sweep.done").is_file() else "started"
    seconds = float(np.nansum(run.train["step_time_s"]))
    return TrialResult(name, values, done, best, best_step, int(run.train["step"][-1]), seconds)


def draw(sweep: SweepConfig, results: Sequence[TrialResult], path: Path) -> bool:
    """Draw the metric of every trial over its steps as a PNG; whether there was anything to draw."""
    from matplotlib.figure import Figure

    runs = [(result, read_run(sweep.dir / result.name)) for result in results if result.best is not None]
    if not runs:
        return False
    best = winner(sweep, results)
    figure = Figure(figsize=(10, 5), dpi=140, facecolor="white")
    axes = figure.add_subplot(xlabel="step", ylabel=sweep.metric.replace("_", " "))
    for result, run in runs:
        chosen = best is not None and result.name == best.name
        _curve(axes, sweep.metric, result, run, chosen)
    axes.grid(color="#e7e5e4", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    figure.tight_layout()
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    figure.savefig(temporary, format="png")
    os.replace(temporary, path)
    return True


def _curve(axes: Any, metric: str, result: TrialResult, run: RunRecord, chosen: bool) -> None:
    known = np.isfinite(run.valid[metric])
    values = ", ".join(f"{key.rpartition('.')[2]} {value}" for key, value in result.values.items())
    axes.plot(
        run.valid["step"][known],
        run.valid[metric][known],
        marker="o",
        markersize=4,
        linewidth=2.5 if chosen else 1.2,
        label=f"{values} (best)" if chosen else values,
    )
