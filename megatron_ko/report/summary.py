"""The key figures of a run: numbers from the metric store, or simple arithmetic on them."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from megatron_ko.metrics.schema import TRAIN, VALID
from megatron_ko.report.store import Column, RunRecord


@dataclass(frozen=True, kw_only=True)
class Summary:
    """Key figures; None if the store does not have the data.

    Losses are in nats per token. ``sources`` holds ``tokens`` and ``valid_loss`` by source name, if the run read
    several. ``training_time_s`` is the sum of step and validation times; ``elapsed_s`` is the time from the first
    recorded step to the last, including the time between sessions.
    """

    run: str
    steps: int
    planned_steps: int | None
    tokens: int
    final_loss: float | None
    best_loss: float | None
    best_loss_step: int | None
    final_valid_loss: float | None
    best_valid_loss: float | None
    best_valid_step: int | None
    bits_per_byte: float | None
    perplexity: float | None
    accuracy: float | None
    median_tokens_per_s: float | None
    median_step_time_s: float | None
    median_tflops: float | None
    median_mfu: float | None
    memory_peak: int | None
    training_time_s: float
    elapsed_s: float | None
    sessions: int
    resumed_from_steps: list[int]
    skipped_steps: int
    recomputed_steps: int
    unreadable_lines: int
    sources: dict[str, dict[str, float | None]]

    def as_dict(self) -> dict[str, Any]:
        """The figures as JSON-ready values."""
        return asdict(self)


def summarise(run: RunRecord) -> Summary:
    """Compute the key figures of a run."""
    train, valid = run.train, run.valid
    trained = np.where(train["skipped"] > 0, np.nan, train["loss"])
    best, best_valid = _argmin(trained), _argmin(valid["valid_loss"])
    eval_time = float(np.nansum(valid["eval_time_s"]))
    return Summary(
        run=run.name,
        steps=int(train["step"][-1]),
        planned_steps=run.planned_steps,
        tokens=int(_last(train["tokens"]) or 0),
        final_loss=_last(trained),
        best_loss=None if best is None else float(trained[best]),
        best_loss_step=None if best is None else int(train["step"][best]),
        final_valid_loss=_last(valid["valid_loss"]),
        best_valid_loss=None if best_valid is None else float(valid["valid_loss"][best_valid]),
        best_valid_step=None if best_valid is None else int(valid["step"][best_valid]),
        bits_per_byte=_last(valid["bits_per_byte"]),
        perplexity=_last(valid["perplexity"]),
        accuracy=_last(valid["accuracy"]),
        median_tokens_per_s=_median(train["tokens_per_s"]),
        median_step_time_s=_median(train["step_time_s"]),
        median_tflops=_median(train["tflops"]),
        median_mfu=_median(train["mfu"]),
        memory_peak=_largest(train["memory_peak"]),
        training_time_s=float(np.nansum(train["step_time_s"])) + eval_time,
        elapsed_s=_span(train["time"]),
        sessions=len(run.sessions),
        resumed_from_steps=run.resumed_steps,
        skipped_steps=int(np.nansum(train["skipped"] > 0)),
        recomputed_steps=run.recomputed,
        unreadable_lines=train.unreadable + valid.unreadable,
        sources=_sources(run),
    )


def _sources(run: RunRecord) -> dict[str, dict[str, float | None]]:
    tokens = {name: int(_last(values) or 0) for name, values in run.train.by_source(TRAIN.by_source).items()}
    losses = {name: _last(values) for name, values in run.valid.by_source(VALID.by_source).items()}
    return {name: {"tokens": tokens.get(name), "valid_loss": losses.get(name)} for name in {**tokens, **losses}}


def _known(values: Column) -> Column:
    return values[np.isfinite(values)]


def _last(values: Column) -> float | None:
    known = _known(values)
    return float(known[-1]) if len(known) else None


def _median(values: Column) -> float | None:
    known = _known(values)
    return float(np.median(known)) if len(known) else None


def _largest(values: Column) -> int | None:
    known = _known(values)
    return int(known.max()) if len(known) else None


def _span(values: Column) -> float | None:
    known = _known(values)
    return float(known[-1] - known[0]) if len(known) else None


def _argmin(values: Column) -> int | None:
    finite = np.where(np.isfinite(values), values, np.inf)
    return int(finite.argmin()) if len(finite) and np.isfinite(finite).any() else None
