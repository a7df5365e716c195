"""The report of a run: one self-contained page."""

import os
from collections.abc import Sequence
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from typing import Any

from megatron_ko.errors import naming
from megatron_ko.report.assets import POINTER, STYLE
from megatron_ko.report.axis import short
from megatron_ko.report.chart import draw
from megatron_ko.report.experts import HEAT_SCRIPT, HEAT_STYLE, heat_map
from megatron_ko.report.plots import charts_of, marks_of
from megatron_ko.report.store import RunRecord, read_run
from megatron_ko.report.summary import Summary, summarise

# The page must not load anything, even if a name in it contains markup.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


def write_report(run_dir: Path) -> Path:
    """Write ``report/index.html`` of a run directory from its metric store.

    Returns:
        Path of the page.

    Raises:
        DataError: the directory holds no metrics, or they cannot be read.
    """
    return save_page(run_dir, read_run(run_dir))


def save_page(run_dir: Path, run: RunRecord) -> Path:
    """Write the page of a run that has been read already; an older page is replaced atomically."""
    path = run_dir / "report" / "index.html"
    path.parent.mkdir(exist_ok=True)
    temporary = path.with_name(f".index.html.{os.getpid()}")
    page = render(run, summarise(run))
    try:
        with naming(path), temporary.open("w", encoding="utf-8") as file:
            file.write(page)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    return path


def render(run: RunRecord, figures: Summary) -> str:
    """The whole page."""
    marks = marks_of(run)
    charts = "".join(draw(chart, marks) for chart in charts_of(run))
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(run.name)} · training report</title><style>{STYLE}{HEAT_STYLE}</style></head><body><main>"
        f"{_header(run, figures)}{_warnings(figures)}{_figures(figures)}"
        f'<section class="charts" aria-label="plots">{charts}</section>{heat_map(run)}{_sources(figures)}'
        f"{_sessions(run)}{_checkpoints(run)}{_lineage(run.lineage)}{_configuration(run)}"
        "<footer>Every number on this page was computed from the metric store of the run.</footer>"
        f"</main><script>{POINTER}{HEAT_SCRIPT}</script></body></html>\n"
    )


def _header(run: RunRecord, figures: Summary) -> str:
    planned = figures.planned_steps
    done = planned is not None and figures.steps >= planned
    state = "complete" if done else f"at step {figures.steps:,}" + (f" of {planned:,}" if planned else "")
    times = run.train["time"]
    parts = [f'<span class="state{" done" if done else ""}">{state}</span>']
    if times[0] == times[0]:
        parts.append(f"{_date(times[0])} to {_date(times[-1])} UTC")
    if (parameters := run.lineage.get("parameters")) is not None:
        parts.append(f"{int(parameters):,} parameters")
    return (
        f'<header><p class="over">megatron_ko · training report</p><h1 lang="ko">{escape(run.name)}</h1>'
        f'<p class="lead">{" · ".join(parts)}</p></header>'
    )


def _date(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M")


def _warnings(figures: Summary) -> str:
    told = []
    if figures.unreadable_lines:
        told.append(f"{_many(figures.unreadable_lines, 'line')} of the metric store cannot be read and left out.")
    if figures.skipped_steps:
        told.append(f"{_many(figures.skipped_steps, 'step')} skipped: the loss or a gradient was not finite.")
    return "".join(f'<p class="warn">{text}</p>' for text in told)


def _many(number: int, noun: str) -> str:
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def _figures(figures: Summary) -> str:
    """The key figures, each with name, value, unit, and one line of context."""
    rate = figures.median_tokens_per_s
    seconds = figures.median_step_time_s
    tiles = [
        ("Loss", _exact(figures.final_loss), "", _at("best", figures.best_loss, figures.best_loss_step)),
        (
            "Validation loss",
            _exact(figures.final_valid_loss),
            "",
            _at("best", figures.best_valid_loss, figures.best_valid_step),
        ),
        _quality(figures),
        ("Tokens", short(figures.tokens, 4), "", f"{figures.tokens:,}"),
        ("Steps", f"{figures.steps:,}", "", f"planned {figures.planned_steps:,}" if figures.planned_steps else ""),
        ("Throughput", short(rate, 4) if rate else "–", "tokens/s", f"median; {_figure(seconds)} s a step"),
        ("Training time", duration(figures.training_time_s), "", _sessions_told(figures)),
        ("Memory peak", _gib(figures.memory_peak), "GiB", _utilisation(figures)),
    ]
    cells = "".join(
        f"<div><dt>{name}</dt><dd>{value}{f'<small>{unit}</small>' if unit and value != '–' else ''}</dd>"
        f"<p>{context}</p></div>"
        for name, value, unit, context in tiles
    )
    return f'<dl class="figures">{cells}</dl>'


def _quality(figures: Summary) -> tuple[str, str, str, str]:
    """Of pairs the accuracy, of text the bits per byte."""
    if figures.accuracy is not None:
        return "Accuracy", f"{figures.accuracy:.1%}", "", "of validated pairs"
    return "Bits per byte", _exact(figures.bits_per_byte), "", f"perplexity {_figure(figures.perplexity)}"


def _exact(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:,.4g}" if value < 1e4 else f"{value:,.0f}"


def _at(word: str, value: float | None, step: int | None) -> str:
    return "" if value is None or step is None else f"{word} {value:.4f} at step {step:,}"


def _gib(size: float | None) -> str:
    return "–" if size is None else f"{size / 2**30:.2f}"


def _sessions_told(figures: Summary) -> str:
    resumed = len(figures.resumed_from_steps)
    if resumed or figures.sessions < 2:
        return f"resumed {_many(resumed, 'time')}" if resumed else "one session"
    return f"started {_many(figures.sessions, 'time')}"


def _utilisation(figures: Summary) -> str:
    if figures.median_tflops is None:
        return ""
    mfu = "" if figures.median_mfu is None else f", {100 * figures.median_mfu:.1f} % of the peak"
    return f"{_figure(figures.median_tflops)} TFLOP/s a rank{mfu}"


def duration(seconds: float) -> str:
    """A length of time in its two largest units: 3 d 4 h, 2 h 5 min, 48 s."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    total = round(seconds)
    for size, name, smaller, smaller_name in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if total >= size:
            return f"{total // size} {name} {total % size // smaller} {smaller_name}"
    raise AssertionError(seconds)


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]], numbers: frozenset[int] = frozenset()) -> str:
    """A table of escaped text; the columns in ``numbers`` are right-aligned."""

    def cells(tag: str, row: Sequence[str]) -> str:
        return "".join(
            f"<{tag}{' class=number' if i in numbers else ''}>{escape(text)}</{tag}>" for i, text in enumerate(row)
        )

    body = "".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{cells("th", heads)}</tr></thead><tbody>{body}</tbody></table></div>'


def _sources(figures: Summary) -> str:
    if not figures.sources:
        return ""
    read = {name: found["tokens"] or 0 for name, found in figures.sources.items()}
    total = sum(read.values()) or 1
    rows = [
        [name, f"{read[name]:,.0f}", f"{read[name] / total:.1%}", _exact(found["valid_loss"])]
        for name, found in figures.sources.items()
    ]
    heads = ["", "tokens read", "share", "validation loss"]
    return "<h2>Sources</h2>" + _table(heads, rows, frozenset({1, 2, 3}))


def _sessions(run: RunRecord) -> str:
    if not run.sessions:
        return ""
    rows = [
        [
            str(number),
            str(session.get("started", "–")),
            f"step {session['resumed_from_step']:,}" if session.get("resumed_from_step") else "the beginning",
            _layout(session.get("layout")),
        ]
        for number, session in enumerate(run.sessions, 1)
    ]
    again = run.recomputed
    told = f'<p class="note">{_many(again, "step")} computed again after a restart; the later values count.</p>'
    return "<h2>Sessions</h2>" + _table(["", "started", "from", "layout"], rows) + (told if again else "")


def _layout(layout: Any) -> str:
    """Parallel axes larger than 1 and enabled options: "world 4, tensor 2, pipeline 2, distributed optimizer"."""
    if not isinstance(layout, dict):
        return str(layout or "–")
    parts = []
    for name, value in layout.items():
        if value is True:
            parts.append(name.replace("_", " "))
        elif value is not False and (value != 1 or name == "world"):
            parts.append(f"{name.replace('_', ' ')} {value}")
    return ", ".join(parts)


def _checkpoints(run: RunRecord) -> str:
    if not run.checkpoints:
        return ""
    rows = [
        [
            entry.name,
            f"{entry.manifest['tokens']:,}" if "tokens" in entry.manifest else "–",
            f"{entry.bytes / 1e6:,.1f} MB" if entry.manifest else "–",
            "complete" if entry.manifest.get("complete") else "no complete manifest",
        ]
        for entry in run.checkpoints
    ]
    return "<h2>Checkpoints</h2>" + _table(["", "tokens", "size", "state"], rows, frozenset({1, 2}))


def _lineage(lineage: dict[str, Any]) -> str:
    if not lineage:
        return ""
    code, tokenizer = lineage.get("code") or {}, lineage.get("tokenizer") or {}
    dirty = "with changes that are not in this commit" if code.get("dirty") else None
    facts = {
        "code": " ".join(str(part) for part in (code.get("version"), code.get("commit"), dirty) if part),
        "tokenizer": " ".join(str(part) for part in (tokenizer.get("path"), tokenizer.get("fingerprint")) if part),
        "epochs": ", ".join(f"{name} {count:.2f}" for name, count in (lineage.get("epochs") or {}).items()),
        "configuration": str(lineage.get("config_sha256") or ""),
        "parents": ", ".join(parent["path"] for parent in lineage.get("parents") or []) or "none, trained from scratch",
        "environment": ", ".join(f"{key} {value}" for key, value in (lineage.get("environment") or {}).items()),
    }
    listed = "".join(f"<dt>{name}</dt><dd>{escape(text)}</dd>" for name, text in facts.items() if text)
    rows = [
        [str(part.get("prefix", "–")), f"{part.get('tokens') or 0:,}", _weight(part.get("weight")), _hash(part)]
        for part in lineage.get("corpus") or []
    ]
    corpus = _table(["corpus", "tokens", "weight", "sha256"], rows, frozenset({1, 2})) if rows else ""
    return f'<h2>Lineage</h2><dl class="facts">{listed}</dl>{corpus}'


def _weight(weight: float | None) -> str:
    return "by tokens" if weight is None else f"{weight:g}"


def _hash(part: dict[str, Any]) -> str:
    value = part.get("sha256")
    if isinstance(value, dict):
        return ", ".join(f"{name} {text[:12]}" for name, text in value.items())
    return str(value or "–")[:16]


def _configuration(run: RunRecord) -> str:
    if not run.config_text:
        return '<h2>Configuration</h2><p class="note">config.resolved.yaml is missing from the run directory.</p>'
    return (
        "<h2>Configuration</h2><details><summary>config.resolved.yaml</summary>"
        f"<pre>{escape(run.config_text)}</pre></details>"
    )
