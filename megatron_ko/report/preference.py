"""Plots of a run on preferences: how often the better answer wins, by how much, and what becomes of both."""

import numpy as np

from megatron_ko.report.chart import Chart, Series
from megatron_ko.report.store import Column, RunRecord


def preference_charts(run: RunRecord) -> list[Chart]:
    """None for a run without answers that are better or worse."""
    if not np.isfinite(run.train["reward_good"]).any():
        return []
    return [chart for chart in (_accuracy(run), _rewards(run), _log_probabilities(run)) if chart.series]


def _accuracy(run: RunRecord) -> Chart:
    series = [Series(name="training", x=run.train["step"], y=run.train["accuracy"])]
    series += _validated(run, "accuracy", "validation")
    known = [one for one in series if np.isfinite(one.y).any()]
    return Chart(key="accuracy", title="Accuracy", unit="share of pairs", series=known, from_zero=True)


def _rewards(run: RunRecord) -> Chart:
    step = run.train["step"]
    series = [
        Series(name="better answers", x=step, y=run.train["reward_good"]),
        Series(name="worse answers", x=step, y=run.train["reward_bad"], style="second"),
    ]
    return Chart(key="rewards", title="Rewards", unit="beta times nats above the reference", series=series)


def _log_probabilities(run: RunRecord) -> Chart:
    step, good, bad = (run.train[name] for name in ("step", "logp_good", "logp_bad"))
    known = np.isfinite(good).any()
    series = [
        Series(name="better answers", x=step, y=good),
        Series(name="worse answers", x=step, y=bad, style="second"),
    ]
    return Chart(key="logp", title="Log-probability", unit="nats a token", series=series if known else [])


def _validated(run: RunRecord, name: str, label: str) -> list[Series]:
    values: Column = run.valid[name]
    return [Series(name=label, x=run.valid["step"], y=values, style="dots")] if np.isfinite(values).any() else []
