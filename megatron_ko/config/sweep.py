"""Several runs that differ in a few values: which ones, and what decides between them."""

import itertools
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from megatron_ko.config.load import build, load_config, read_tree
from megatron_ko.config.section import Section
from megatron_ko.errors import ConfigError

# Metrics of validations, and whether the largest is the best.
METRICS: dict[str, bool] = {"valid_loss": False, "bits_per_byte": False, "accuracy": True, "margin": True}
_NAMED = 80


class SweepConfig(Section):
    """A sweep."""

    run: Path = Field(description="Run file that every trial starts from.")
    dir: Path = Field(description="Folder of the trials, and of what compares them.")
    grid: dict[str, list[Any]] = Field(
        default_factory=dict, description="Dotted key -> values; every combination is a trial."
    )
    trials: list[dict[str, Any]] = Field(
        default_factory=list, description="Or the trials one by one, each with its dotted keys and values."
    )
    metric: Literal["valid_loss", "bits_per_byte", "accuracy", "margin"] = Field(
        description="What decides: the best validation of each trial by it."
    )


@dataclass(frozen=True)
class Trial:
    """One run of a sweep: its values by dotted key, and the name of its folder."""

    values: dict[str, Any]

    @property
    def name(self) -> str:
        """The values, as far as a file name takes them."""
        parts = (f"{key.rpartition('.')[2]}={json.dumps(value)}" for key, value in self.values.items())
        text = "_".join(parts).replace('"', "")
        return "".join(sign if sign.isalnum() or sign in "=._-" else "-" for sign in text)[:_NAMED]

    @property
    def overrides(self) -> list[str]:
        """The values as a command line gives them."""
        return [f"{key}={json.dumps(value)}" for key, value in self.values.items()]


def load_sweep(path: Path) -> SweepConfig:
    """Read a sweep and check every trial's configuration.

    Raises:
        ConfigError: no trials, two of one name, an impossible configuration, a metric that cannot compare the trials.
    """
    sweep = build(SweepConfig, read_tree(path), origin=str(path))
    folder = path.absolute().parent
    sweep = sweep.model_copy(update={"run": folder / sweep.run, "dir": Path(os.path.normpath(folder / sweep.dir))})
    if bool(sweep.grid) == bool(sweep.trials):
        raise ConfigError(
            f"{path} does not say which trials there are",
            got="grid and trials" if sweep.grid else "neither grid nor trials",
            expected="one of them",
            remedy="grid: {optim.lr: [1.0e-5, 2.0e-5]}",
        )
    trials = list(trials_of(sweep))
    if not trials:
        raise ConfigError(
            f"{path} has a key without values: there is no trial", got=sweep.grid, remedy="give it values"
        )
    names = [trial.name for trial in trials]
    if double := {name for name in names if names.count(name) > 1}:
        raise ConfigError("two trials of a sweep have one name", got=", ".join(sorted(double)), remedy="remove one")
    _check_comparable(path, sweep, trials)
    for trial in trials:
        load_config(sweep.run, [*trial.overrides, f"run.dir={sweep.dir / trial.name}"])
    return sweep


def trials_of(sweep: SweepConfig) -> Iterator[Trial]:
    """The trials, in order."""
    if sweep.trials:
        yield from map(Trial, sweep.trials)
        return
    for values in itertools.product(*sweep.grid.values()):
        yield Trial(dict(zip(sweep.grid, values, strict=True)))


def _check_comparable(path: Path, sweep: SweepConfig, trials: list[Trial]) -> None:
    """Refuse a metric that means something else in every trial."""
    keys = sorted({key for trial in trials for key in trial.values})
    for key in keys:
        reason = _incomparable(sweep.metric, key)
        if reason and len({json.dumps(trial.values.get(key)) for trial in trials}) > 1:
            better = "accuracy" if key.startswith("objective.") else "bits_per_byte"
            raise ConfigError(
                f"{sweep.metric} cannot be compared across {key}: {reason}",
                got=f"metric: {sweep.metric}, in {path}",
                expected="a metric that means the same in every trial",
                remedy=f"metric: {better}",
            )


def _incomparable(metric: str, key: str) -> str | None:
    if key.startswith("objective.") and not key.startswith("objective.neftune") and metric in ("valid_loss", "margin"):
        return "it is scaled by it" if key == "objective.beta" else "it is part of what the number is"
    if key.startswith("data.tokenizer") and metric == "valid_loss":
        return "tokens of another tokenizer hold another share of the text"
    if key in ("data.split", "data.sources") or key.startswith("eval."):
        return "the validation would be another one"
    return None
