"""The plots of a run, and its loss curve as a PNG."""

import os
from pathlib import Path
from typing import Any

import numpy as np

from megatron_ko.metrics.schema import VALID
from megatron_ko.report.axis import fit_axis
from megatron_ko.report.chart import Chart, Marks, Series
from megatron_ko.report.experts import expert_charts
from megatron_ko.report.preference import preference_charts
from megatron_ko.report.reduce import keep_extremes, smooth
from megatron_ko.report.store import Column, RunRecord, read_run

_GIB = 2.0**30
_BLUE, _ORANGE, _INK, _GREY = "#2b63d9", "#cf6a12", "#292524", "#e7e5e4"


def marks_of(run: RunRecord) -> Marks:
    """Sessions and skipped steps of a run."""
    skipped = run.train["step"][run.train["skipped"] > 0]
    return Marks(last=int(run.train["step"][-1]), resumed=run.resumed_steps, skipped=skipped)


def charts_of(run: RunRecord) -> list[Chart]:
    """Every plot of the report, in order."""
    train, step = run.train, run.train["step"]
    span = smoothing_span(len(train))
    return [
        _loss_chart(run, span),
        Chart(
            key="lr",
            title="Learning rate",
            unit="",
            series=[Series(name="learning rate", x=step, y=train["lr"])],
            from_zero=True,
        ),
        _with_average("grad-norm", "Gradient norm", "log scale", step, train["grad_norm"], log=True),
        _with_average("throughput", "Throughput", "tokens/s, all ranks", step, train["tokens_per_s"]),
        _with_average("step-time", "Step time", "s", step, train["step_time_s"]),
        Chart(
            key="memory",
            title="Memory",
            unit="GiB, first rank",
            series=_memory_series(run),
            from_zero=True,
        ),
        *_quality_chart(run),
        *preference_charts(run),
        *_source_charts(run),
        *expert_charts(run),
    ]


def _memory_series(run: RunRecord) -> list[Series]:
    """Peak memory, and the memory that the allocator holds; on a CPU both are the same."""
    step, peak, reserved = (run.train[name] for name in ("step", "memory_peak", "memory_reserved"))
    series = [Series(name="peak", x=step, y=peak / _GIB)]
    if not np.array_equal(peak, reserved, equal_nan=True):
        series.append(Series(name="reserved", x=step, y=reserved / _GIB, style="second"))
    return series


def smoothing_span(steps: int) -> int:
    """Steps that smoothed curves average over: a fiftieth of the run, between 5 and 500."""
    return min(500, max(5, steps // 50))


def _loss_chart(run: RunRecord, span: int) -> Chart:
    step = run.train["step"]
    loss = np.where(run.train["skipped"] > 0, np.nan, run.train["loss"])
    series = [
        Series(name="each step", x=step, y=loss, style="raw"),
        Series(name=f"average of {span:,} steps", x=step, y=smooth(loss, span)),
    ]
    if len(run.valid):
        series.append(Series(name="validation", x=run.valid["step"], y=run.valid["valid_loss"], style="dots"))
    pairs = np.isfinite(run.train["reward_good"]).any()
    unit = "nats a pair" if pairs else "nats a token"
    return Chart(key="loss", title="Loss", unit=unit, series=series, wide=True, note=_loss_note(run))


def _loss_note(run: RunRecord) -> str:
    parts = []
    if run.resumed_steps:
        parts.append("dashed: a session resumed from a checkpoint")
    if np.any(run.train["skipped"] > 0):
        parts.append("red: skipped steps")
    return " · ".join(parts)


def _with_average(key: str, title: str, unit: str, step: Column, values: Column, log: bool = False) -> Chart:
    span = smoothing_span(len(step))
    series = [
        Series(name="each step", x=step, y=values, style="raw"),
        Series(name=f"average of {span:,}", x=step, y=smooth(values, span)),
    ]
    return Chart(key=key, title=title, unit=unit, series=series, from_zero=not log, log=log)


def _quality_chart(run: RunRecord) -> list[Chart]:
    """Validation in bits per byte, which do not depend on the tokenizer, or perplexity if the bytes are unknown.

    None for a validation of pairs, which has neither.
    """
    valid = run.valid
    if np.isfinite(valid["bits_per_byte"]).any():
        name, unit, values = "Validation bits per byte", "bits", valid["bits_per_byte"]
    else:
        name, unit, values = "Validation perplexity", "a token", valid["perplexity"]
    if len(valid) and not np.isfinite(values).any():
        return []
    series = [Series(name="validation", x=valid["step"], y=values, style="dots")]
    note = "" if len(valid) else "this run was not validated yet"
    return [Chart(key="validation", title=name, unit=unit, series=series, note=note)]


def _source_charts(run: RunRecord) -> list[Chart]:
    """Validation loss by source, if there are several: one chart each, all with the same step axis."""
    step = run.valid["step"]
    return [
        Chart(
            key=f"source-{number}",
            title=f"Validation loss of {name}",
            unit="nats a token",
            series=[
                Series(name=name, x=step, y=values, style="dots"),
                Series(name="all sources", x=step, y=run.valid["valid_loss"]),
            ],
        )
        for number, (name, values) in enumerate(run.valid.by_source(VALID.by_source).items(), 1)
        if np.isfinite(values).any()
    ]


def loss_curve_png(run_dir: Path, path: Path) -> Path:
    """Draw the loss curve of a run as a PNG of 1400 x 700 pixels.

    Args:
        run_dir: run directory.
        path: file to write; an existing one is replaced.

    Raises:
        DataError: the directory holds no metrics.
    """
    from matplotlib.figure import Figure

    run = read_run(run_dir)
    chart = _loss_chart(run, smoothing_span(len(run.train)))
    figure = Figure(figsize=(10, 5), dpi=140, facecolor="white")
    axes = figure.add_subplot(xlabel="step", ylabel=f"loss ({chart.unit})")
    looks: dict[str, dict[str, Any]] = {
        "raw": {"color": _BLUE, "alpha": 0.3, "linewidth": 1},
        "line": {"color": _BLUE, "linewidth": 2},
        "dots": {"color": _ORANGE, "linewidth": 1.5, "marker": "o", "markersize": 5, "clip_on": False},
    }
    for series in chart.series:
        chosen = keep_extremes(series.x, series.y, 1000)
        axes.plot(series.x[chosen], series.y[chosen], label=series.name, **looks[series.style])
    for number, step in enumerate(run.resumed_steps):
        axes.axvline(step, color="#78716c", linestyle=(0, (4, 3)), linewidth=1, label="" if number else "resumed")
    axis = fit_axis(np.concatenate([series.y for series in chart.series]))
    axes.set_ylim(axis.low, axis.high)
    axes.set_xlim(run.train["step"][0], run.train["step"][-1])
    axes.grid(color=_GREY, linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#a8a29e")
    axes.tick_params(colors=_INK)
    axes.legend(frameon=False)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    figure.savefig(temporary, format="png")
    os.replace(temporary, path)
    return path
