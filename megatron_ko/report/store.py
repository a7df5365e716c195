"""Reads a run directory: metric store, lineage, configuration and checkpoints, exactly as they were written."""

import json
from array import array
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from megatron_ko.errors import DataError
from megatron_ko.metrics.schema import SUPERSEDED, TRAIN, VALID

Column = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Table:
    """Columns of one metrics file, one row per step, in step order; unknown numbers are NaN.

    Attributes:
        columns: name -> values, all of the same length.
        superseded: rows that a resumed session computed again; only the later ones are in the columns.
        unreadable: lines that are not JSON objects, or hold something other than a number where one is expected.
    """

    columns: dict[str, Column]
    superseded: int = 0
    unreadable: int = 0

    def __len__(self) -> int:
        return len(self.columns["step"])

    def __getitem__(self, name: str) -> Column:
        return self.columns[name]

    def by_source(self, prefix: str) -> dict[str, Column]:
        """The columns whose names begin with a prefix, by the rest of the name."""
        return {name.removeprefix(prefix): values for name, values in self.columns.items() if name.startswith(prefix)}


@dataclass(frozen=True, kw_only=True)
class CheckpointEntry:
    """One checkpoint directory, as described by its manifest; ``manifest`` is empty if it cannot be read."""

    name: str
    manifest: dict[str, Any]

    @property
    def bytes(self) -> int:
        """Size of the payload according to the manifest."""
        return sum(int(entry["bytes"]) for entry in self.manifest.get("files", {}).values())


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """All data that the report is made from.

    Attributes:
        directory: the run directory.
        train, valid: the metrics.
        recomputed: training steps that were computed again after a restart.
        config_text, config: ``config.resolved.yaml``, empty if it is missing.
        lineage: ``lineage.json``, empty if it is missing.
        checkpoints: ordered by step.
    """

    directory: Path
    train: Table
    valid: Table
    recomputed: int
    config_text: str
    config: dict[str, Any]
    lineage: dict[str, Any]
    checkpoints: list[CheckpointEntry]

    @property
    def name(self) -> str:
        """Name of the run, or of its directory."""
        return str(self.config.get("run", {}).get("name") or self.lineage.get("run") or self.directory.name)

    @property
    def planned_steps(self) -> int | None:
        """Steps in the configuration, if known."""
        steps = self.config.get("training", {}).get("steps")
        return int(steps) if steps is not None else None

    @property
    def sessions(self) -> list[dict[str, Any]]:
        """One entry per start of the run."""
        return list(self.lineage.get("sessions", []))

    @property
    def resumed_steps(self) -> list[int]:
        """The steps from which sessions resumed."""
        return [int(s["resumed_from_step"]) for s in self.sessions if s.get("resumed_from_step")]


def read_run(directory: Path) -> RunRecord:
    """Read a run directory.

    Raises:
        DataError: it has no metrics, or one of its files cannot be read.
    """
    metrics = directory / "metrics" / TRAIN.file
    remedy = "give the run directory of `megatron-ko train` (run.dir)"
    if not metrics.is_file():
        raise DataError("no metrics in the run directory", got=directory, expected=metrics, remedy=remedy)
    train = read_table(metrics, TRAIN.columns(), TRAIN.by_source)
    if not len(train):
        raise DataError("the metrics hold no step yet", got=metrics, remedy="wait for the first step, then try again")
    last = train["step"][-1]
    config_text = _read_text(directory / "config.resolved.yaml")
    return RunRecord(
        directory=directory,
        train=train,
        valid=_until(read_table(directory / "metrics" / VALID.file, VALID.columns(), VALID.by_source), last),
        recomputed=train.superseded + _moved_steps(metrics.with_name(SUPERSEDED)),
        config_text=config_text,
        config=_parse_yaml(config_text, directory / "config.resolved.yaml"),
        lineage=_parse_json(directory / "lineage.json"),
        checkpoints=_read_checkpoints(directory / "checkpoints"),
    )


def read_table(path: Path, names: tuple[str, ...], prefix: str | None = None) -> Table:
    """Read the named numbers of a JSON-lines file, and all that begin with ``prefix``; a missing file is empty.

    When a run is resumed, steps after its checkpoint are computed again. A row therefore replaces every earlier row
    of the same or a later step. An incomplete line, as left by a killed process, is counted as unreadable.
    """
    values = {name: array("d") for name in names}
    unreadable = 0
    if path.is_file():
        with path.open("rb") as lines:
            for line in lines:
                row = _parse_row(line)
                found = [] if row is None or prefix is None else [name for name in row if name.startswith(prefix)]
                for name in found:
                    values.setdefault(name, array("d", [np.nan]) * len(values["step"]))
                numbers = None if row is None else [row.get(name) for name in values]
                if numbers is None or not all(number is None or isinstance(number, int | float) for number in numbers):
                    unreadable += 1
                    continue
                for name, number in zip(values, numbers, strict=True):
                    values[name].append(np.nan if number is None else float(number))
    columns = {name: np.frombuffer(column, dtype=np.float64) for name, column in values.items()}
    kept = _not_superseded(columns["step"])
    return Table(
        columns={name: column[kept] for name, column in columns.items()},
        superseded=int(len(kept) - kept.sum()),
        unreadable=unreadable,
    )


def _moved_steps(path: Path) -> int:
    """Training steps in the file to which a restart moves superseded records."""
    if not path.is_file():
        return 0
    with path.open("rb") as lines:
        return sum("grad_norm" in row for row in map(_parse_row, lines) if row is not None)


def _parse_row(line: bytes) -> dict[str, Any] | None:
    try:
        row = orjson.loads(line)
    except orjson.JSONDecodeError:
        try:
            row = json.loads(line)  # unlike orjson, accepts NaN and Infinity
        except ValueError:
            return None
    return row if isinstance(row, dict) and "step" in row else None


def _not_superseded(steps: Column) -> NDArray[np.bool_]:
    """Rows whose step is smaller than that of every later row."""
    if not len(steps):
        return np.zeros(0, dtype=bool)
    smallest_from = np.minimum.accumulate(steps[::-1])[::-1]
    return np.append(steps[:-1] < smallest_from[1:], True)


def _until(table: Table, last_step: float) -> Table:
    kept = table["step"] <= last_step
    return Table(
        columns={name: column[kept] for name, column in table.columns.items()},
        superseded=table.superseded + int(len(kept) - kept.sum()),
        unreadable=table.unreadable,
    )


def _read_text(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.is_file() else ""


def _parse_yaml(text: str, path: Path) -> dict[str, Any]:
    try:
        tree = YAML(typ="safe").load(text) if text else {}
    except YAMLError as error:
        raise DataError("the configuration of the run is damaged", got=f"{path}: {error}") from None
    sections = (tree or {}).values() if isinstance(tree or {}, dict) else [tree]
    if not all(section is None or isinstance(section, dict) for section in sections):  # None: it was left out
        raise DataError("the configuration of the run is damaged", got=path, expected="sections with keys")
    return dict(tree or {})


def _parse_json(path: Path) -> dict[str, Any]:
    text = _read_text(path)
    try:
        content = {**json.loads(text)} if text else {}
    except (ValueError, TypeError) as error:
        raise DataError("a file of the run directory is damaged", got=f"{path}: {error}") from None
    for name in ("sessions", "corpus"):
        entries = content.get(name, [])
        if not (isinstance(entries, list) and all(isinstance(entry, dict) for entry in entries)):
            raise DataError("a file of the run directory is damaged", got=path, expected=f"a list of {name}")
    return content


def _read_checkpoints(folder: Path) -> list[CheckpointEntry]:
    found = sorted(path for path in folder.glob("step_*") if path.is_dir()) if folder.is_dir() else []
    return [CheckpointEntry(name=path.name, manifest=_read_manifest(path / "manifest.json")) for path in found]


def _read_manifest(path: Path) -> dict[str, Any]:
    """The manifest, or nothing: an incomplete checkpoint is shown and does not make the report fail."""
    try:
        return dict(json.loads(_read_text(path) or "{}"))
    except ValueError:
        return {}
