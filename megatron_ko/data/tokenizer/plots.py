"""Tokenizers side by side."""

from pathlib import Path

from matplotlib.figure import Figure

from megatron_ko.data.figures import save_png
from megatron_ko.data.tokenizer.compare import Comparison

_BAR, _BEST = "#9db8cc", "#2f6f9f"


def comparison_png(comparison: Comparison, path: Path) -> None:
    """Fertility and coverage of every tokenizer; the best bar of each panel is dark."""
    fits = comparison.fits
    panels = (
        ("tokens an eojeol (fewer is better)", [fit.tokens_per_eojeol for fit in fits], min, "{:.2f}"),
        ("bytes a token (more is better)", [fit.bytes_per_token for fit in fits], max, "{:.2f}"),
        ("characters spelt in bytes or unknown", [100 * (1 - fit.coverage) for fit in fits], min, "{:.2f} %"),
    )
    figure = Figure(figsize=(12, 1.4 + 0.5 * len(fits)), layout="constrained")
    rows = range(len(fits))
    for axes, (title, values, best, form) in zip(figure.subplots(1, 3, sharey=True), panels, strict=True):
        axes.barh(rows, values, color=[_BEST if value == best(values) else _BAR for value in values], height=0.65)
        for row, value in enumerate(values):
            axes.annotate(form.format(value), (value, row), xytext=(4, 0), textcoords="offset points", va="center")
        axes.set_xlim(0, max(max(values) * 1.25, 1e-9))
        axes.set_title(title, fontsize=10)
        axes.set_xticks([])
        axes.set_yticks(rows, [f"{fit.name}\n{fit.vocab_size:,} ids" for fit in fits], fontsize=9)
        axes.tick_params(length=0)
        axes.spines[["top", "right", "bottom"]].set_visible(False)
    figure.axes[0].invert_yaxis()
    figure.suptitle(f"{comparison.documents:,} documents, {comparison.bytes / 1e6:.1f} MB", fontsize=10)
    save_png(figure, path)
