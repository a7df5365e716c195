"""What sources hold, side by side: totals, and how long their documents are."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from megatron_ko.data.figures import save_png
from megatron_ko.data.tokens.blend import SourceData

_COLUMNS = 3
_BAR, _LINE = "#2f6f9f", "#c0392b"


@dataclass(frozen=True)
class SourceStats:
    """One source; bytes are UTF-8 bytes of text, lengths the median, percentiles and largest tokens of a document."""

    name: str
    shards: int
    documents: int
    tokens: int
    bytes: int
    rejected: int
    tokens_per_document: float
    bytes_per_token: float
    lengths: dict[str, float]


@dataclass(frozen=True)
class TotalStats:
    """Sums over all sources."""

    shards: int
    documents: int
    tokens: int
    bytes: int
    rejected: int


@dataclass(frozen=True)
class Stats:
    """Several sources side by side, and their sums."""

    sources: list[SourceStats]
    total: TotalStats


def source_stats(sources: Sequence[SourceData]) -> Stats:
    """Totals of every source and of all of them."""
    rows = []
    for source in sources:
        lengths = source.lengths()
        percentiles = np.percentile(lengths, [50, 90, 99]).round(1).tolist() if len(lengths) else [0, 0, 0]
        rows.append(
            SourceStats(
                name=source.name,
                shards=len(source.shards),
                documents=source.documents,
                tokens=source.tokens,
                bytes=source.bytes,
                rejected=sum(manifest.rejected for manifest in source.manifests),
                tokens_per_document=round(source.tokens / max(1, source.documents), 2),
                bytes_per_token=round(source.bytes / max(1, source.tokens), 4),
                lengths=dict(zip(("median", "p90", "p99"), percentiles, strict=True))
                | {"max": int(lengths.max(initial=0))},
            )
        )
    total = TotalStats(
        shards=sum(row.shards for row in rows),
        documents=sum(row.documents for row in rows),
        tokens=sum(row.tokens for row in rows),
        bytes=sum(row.bytes for row in rows),
        rejected=sum(row.rejected for row in rows),
    )
    return Stats(rows, total)


def stats_table(stats: Stats) -> list[str]:
    """The totals as lines of a Markdown table."""
    lines = [
        "| source | documents | tokens | share | MB of text | bytes a token | tokens a document: mean | median | 99 % "
        "| largest |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    total = stats.total
    for row in stats.sources:
        lengths, share = row.lengths, row.tokens / max(1, total.tokens)
        lines.append(
            f"| {row.name} | {row.documents:,} | {row.tokens:,} | {share:.1%} "
            f"| {row.bytes / 1e6:.1f} | {row.bytes_per_token:.3f} | {row.tokens_per_document:,.1f} "
            f"| {lengths['median']:,.0f} | {lengths['p99']:,.0f} | {lengths['max']:,} |"
        )
    per_token, mean = total.bytes / max(1, total.tokens), total.tokens / max(1, total.documents)
    lines.append(
        f"| all | {total.documents:,} | {total.tokens:,} | 100.0% | {total.bytes / 1e6:.1f} "
        f"| {per_token:.3f} | {mean:,.1f} | | | |"
    )
    return lines


def lengths_png(sources: Sequence[SourceData], path: Path) -> None:
    """Documents by their length in tokens, in powers of two; a histogram a source, its median in red."""
    lengths = {source.name: source.lengths() for source in sources}
    longest = max((int(values.max(initial=1)) for values in lengths.values()), default=1)
    edges = 2.0 ** np.arange(0, np.ceil(np.log2(max(2, longest))) + 0.51, 0.5)
    rows = -(-len(sources) // _COLUMNS)
    columns = min(_COLUMNS, len(sources))
    figure = Figure(figsize=(4.4 * columns, 2.6 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).flatten()
    for axes, source in zip(grid, sources, strict=False):
        values = lengths[source.name]
        axes.hist(values, bins=edges, color=_BAR)
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        axes.axvline(median := float(np.median(values)), color=_LINE, linewidth=1.5, label=f"median {median:,.0f}")
        axes.legend(fontsize=8, frameon=False)
        axes.set_title(f"{source.name}: {source.documents:,} documents, {source.tokens:,} tokens", fontsize=9)
        axes.set_xlabel("tokens a document", fontsize=8)
        axes.set_ylabel("documents", fontsize=8)
        axes.tick_params(labelsize=7)
        axes.spines[["top", "right"]].set_visible(False)
    for axes in grid[len(sources) :]:
        axes.set_visible(False)
    save_png(figure, path)
