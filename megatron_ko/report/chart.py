"""One chart as HTML: curves in an inline SVG that scales with the page, labels in HTML that does not."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Literal

import numpy as np

from megatron_ko.report.axis import Axis, fit_axis, labels, short
from megatron_ko.report.reduce import keep_extremes
from megatron_ko.report.store import Column

_BUCKETS = 400
_SIDE = 1000  # width and height of the drawing in its own units; it is scaled to the screen

Style = Literal["raw", "line", "second", "dots"]


@dataclass(frozen=True, kw_only=True)
class Series:
    """One curve.

    Attributes:
        name: label in the legend.
        x, y: positions and values; non-finite values are gaps and are left out.
        style: raw (faint), line, second (another colour), dots (points joined by a line).
    """

    name: str
    x: Column
    y: Column
    style: Style = "line"


@dataclass(frozen=True, kw_only=True)
class Chart:
    """One plot with a common x axis, the step.

    Attributes:
        key: its id in the page is ``plot-<key>``.
        title, unit: the quantity and its unit.
        series: the curves.
        from_zero, log: kind of y axis.
        wide: whether it spans the page.
        note: one line below the plot.
    """

    key: str
    title: str
    unit: str
    series: Sequence[Series]
    from_zero: bool = False
    log: bool = False
    wide: bool = False
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Marks:
    """Events of a run: the last step, steps from which a session resumed, and skipped steps."""

    last: int = 0
    resumed: Sequence[int] = ()
    skipped: Column = field(default_factory=lambda: np.zeros(0))


def draw(chart: Chart, marks: Marks) -> str:
    """The chart as one ``<figure>``."""
    x_axis = _x_axis(chart, marks)
    y_axis = fit_axis(np.concatenate([s.y for s in chart.series]), from_zero=chart.from_zero, log=chart.log)
    curves = "".join(_curve(series, x_axis, y_axis) for series in chart.series)
    ticks = y_axis.ticks(5)
    y_ticks = [(text, 100 * (1 - _at(y_axis, tick))) for text, tick in zip(labels(ticks), ticks, strict=True)]
    x_ticks = [(tick, 100 * _at(x_axis, tick)) for tick in x_axis.ticks(6)]
    grid = "".join(f'<path class="grid" d="M0 {10 * top:.0f}H{_SIDE}"/>' for _, top in y_ticks)
    named = "".join(f'<span class="y" style="top:{top:.2f}%">{text}</span>' for text, top in y_ticks)
    named += "".join(
        f'<span class="x" style="left:{left:.2f}%">{short(tick) if tick else "step 0"}</span>' for tick, left in x_ticks
    )
    lowest = f"{short(y_axis.low)} to {short(y_axis.high)} {chart.unit}"
    return (
        f'<figure class="chart{" wide" if chart.wide else ""}" id="plot-{chart.key}">'
        f"<figcaption><h3>{escape(chart.title)} <small>{escape(chart.unit)}</small></h3>{_legend(chart)}</figcaption>"
        f'<div class="plot"><svg viewBox="0 0 {_SIDE} {_SIDE}" preserveAspectRatio="none" role="img" '
        f'aria-label="{escape(chart.title)} over steps, {escape(lowest)}">{grid}{_lines(marks, x_axis)}{curves}</svg>'
        f"{named}{_names(marks, x_axis) if chart.wide else ''}"
        f'<i class="cross"></i><output></output></div>{_note(chart, y_axis)}'
        f'<script type="application/json">{_values(chart, x_axis)}</script></figure>'
    )


def _x_axis(chart: Chart, marks: Marks) -> Axis:
    """From step 0 to the last one, in every chart of a run."""
    ends = [float(series.x[-1]) for series in chart.series if len(series.x)]
    return Axis(low=0.0, high=max([*ends, float(marks.last), 1.0]))


def _at(axis: Axis, value: float) -> float:
    return float(axis.place(np.array([value]))[0])


def _curve(series: Series, x_axis: Axis, y_axis: Axis) -> str:
    chosen = keep_extremes(series.x, series.y, _BUCKETS)
    if not len(chosen):
        return ""
    across = np.round(_SIDE * x_axis.place(series.x[chosen]), 1)
    down = np.round(_SIDE * (1 - y_axis.place(series.y[chosen])), 1)
    points = [f"{x:g} {y:g}" for x, y in zip(across.tolist(), down.tolist(), strict=True)]
    path = f'<path class="{series.style}" d="M{"L".join(points)}"/>'
    if series.style == "dots" or len(points) == 1:
        # A line of length zero with round ends is a dot that stays round, however the drawing is scaled.
        path += f'<path class="dot {series.style}" d="{"".join(f"M{p}h0" for p in points)}"/>'
    return path


def _lines(marks: Marks, x_axis: Axis) -> str:
    resumed = "".join(
        f'<path class="resumed" d="M{_SIDE * _at(x_axis, step):.1f} 0V{_SIDE}"/>' for step in marks.resumed
    )
    skipped = "".join(
        f"M{_SIDE * position:.1f} {_SIDE}v-50"
        for position in np.unique(np.round(x_axis.place(marks.skipped), 3)).tolist()
    )
    return resumed + (f'<path class="skipped" d="{skipped}"/>' if skipped else "")


def _names(marks: Marks, x_axis: Axis) -> str:
    """Labels of the sessions; in the right half they are left of their line."""
    spans, last = "", -1.0
    for step in sorted(set(marks.resumed)):
        left = _at(x_axis, step)
        if left - last > 0.15 or last < 0:  # labels that would overlap are left out, their lines stay
            side = "right" if left > 0.7 else "left"
            spans += f'<span class="session {side}" style="left:{100 * left:.2f}%">resumed from {step:,}</span>'
            last = left
    return spans


def _legend(chart: Chart) -> str:
    if len(chart.series) < 2:
        return ""
    entries = "".join(f'<li class="{series.style}">{escape(series.name)}</li>' for series in chart.series)
    return f'<ul class="legend">{entries}</ul>'


def _note(chart: Chart, y_axis: Axis) -> str:
    """The line below the plot, with the number of values beyond the axis (averages are not counted)."""
    values = [series.y for series in chart.series if series.style != "line" or len(chart.series) == 1]
    beyond = sum(int((y > y_axis.high).sum()) for y in values)
    told = (
        f"{beyond:,} value{'s' if beyond > 1 else ''} above {short(y_axis.high)}, drawn at the edge" if beyond else ""
    )
    text = " · ".join(part for part in (chart.note, told) if part)
    return f'<p class="note">{escape(text)}</p>' if text else ""


def _values(chart: Chart, x_axis: Axis) -> str:
    """The data for the pointer script as JSON: the ends of the x axis and the points of every curve."""
    curves = []
    for series in chart.series:
        chosen = keep_extremes(series.x, series.y, _BUCKETS)
        values = [float(f"{value:.5g}") for value in series.y[chosen].tolist()]
        curves.append({"name": series.name, "x": [int(x) for x in series.x[chosen].tolist()], "y": values})
    return json.dumps({"x": [x_axis.low, x_axis.high], "curves": curves}, separators=(",", ":")).replace("<", "\\u003c")
