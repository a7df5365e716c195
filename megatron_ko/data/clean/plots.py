"""Pictures: what is left after every stage, and how measured quantities are distributed."""

import math
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from megatron_ko.data.clean.calibration import MeasureSummary
from megatron_ko.data.clean.report import CleanReport
from megatron_ko.data.figures import save_png

_LEFT, _LOST, _LIMIT = "#2f6f9f", "#d8dde3", "#c0392b"
_COLUMNS = 3


def retention_png(report: CleanReport, path: Path) -> None:
    """Shares of documents and of characters that are left after every stage."""
    names = ["input", *(stage["stage"] for stage in report["stages"])]
    amounts = [report["in"], *(stage["out"] for stage in report["stages"])]
    left = {
        "documents": [amount["documents"] for amount in amounts],
        "characters": [amount["characters"] for amount in amounts],
    }
    figure = Figure(figsize=(11, 1.2 + 0.38 * len(names)), layout="constrained")
    for axes, (unit, numbers) in zip(figure.subplots(1, 2, sharey=True), left.items(), strict=True):
        whole = max(1, numbers[0])
        shares = [number / whole for number in numbers]
        rows = range(len(names))
        axes.barh(rows, [max(1.0, *shares)] * len(names), color=_LOST)
        axes.barh(rows, shares, color=_LEFT)
        for row, share in enumerate(shares):
            before = shares[row - 1] if row else share
            lost = f"  ({share - before:+.1%})" if abs(share - before) >= 0.0005 else ""
            inside = share > 0.45
            axes.text(
                share - 0.01 if inside else share + 0.01,
                row,
                f"{share:.1%}{lost}",
                va="center",
                ha="right" if inside else "left",
                color="white" if inside else "black",
                fontsize=9,
            )
        axes.set_title(f"{unit}: {numbers[-1]:,} of {numbers[0]:,} left", fontsize=10)
        axes.set_xlim(0, max(1.0, *shares))
        axes.set_xticks([])
        axes.set_yticks(rows, names)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
    figure.axes[0].invert_yaxis()
    save_png(figure, path)


def histograms_png(measures: Sequence[MeasureSummary], path: Path) -> None:
    """One histogram for each measured quantity, with its limits."""
    columns = min(_COLUMNS, len(measures))
    rows = math.ceil(len(measures) / columns)
    figure = Figure(figsize=(4.2 * columns, 2.3 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).flatten()
    for axes, measure in zip(grid, measures, strict=False):
        edges, counts = measure.histogram.edges, measure.histogram.counts
        axes.bar(edges[:-1], counts, width=edges[1] - edges[0], align="edge", color=_LEFT)
        reach = edges[-1] - edges[0]
        for limit in (measure.low, measure.high):
            if limit is None:
                continue
            if edges[0] - reach <= limit <= edges[-1] + reach:
                axes.axvline(limit, color=_LIMIT, linewidth=1.5)
            else:
                where = {"x": 0.98, "ha": "right"} if limit > edges[-1] else {"x": 0.02, "ha": "left"}
                axes.text(y=0.85, s=f"limit {limit:g}", color=_LIMIT, fontsize=8, transform=axes.transAxes, **where)
        axes.set_title(f"{measure.stage}: {measure.reason}  ({measure.outside:.1%} outside)", fontsize=8)
        axes.set_yticks([])
        axes.tick_params(labelsize=7)
        axes.spines[["top", "right", "left"]].set_visible(False)
    for axes in grid[len(measures) :]:
        axes.set_visible(False)
    save_png(figure, path)
