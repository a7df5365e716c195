"""Receivers of metric records: JSON lines, TensorBoard, Weights & Biases. A record is a flat dictionary."""

import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import orjson
from torch.utils.tensorboard import SummaryWriter

from megatron_ko.errors import ConfigError, naming
from megatron_ko.metrics.schema import TRAIN, VALID, Schema
from megatron_ko.storage.files import write_atomic
from megatron_ko.train.state import Record


class Sink(Protocol):
    """A receiver of metric records, on rank 0 only."""

    def write_step(self, record: Record) -> None:
        """Write the record of one training step."""
        ...

    def write_eval(self, record: Record) -> None:
        """Write the record of one validation."""
        ...

    def close(self) -> None:
        """Flush and release everything."""
        ...


class JsonLines:
    """One file of JSON lines, each flushed when it is written. Numbers keep all digits; NaN becomes null."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path, self._stream = path, path.open("ab")

    @property
    def position(self) -> int:
        """Length of the file in bytes."""
        return self._stream.tell()

    def write(self, record: Mapping[str, object]) -> None:
        """Append one line."""
        with naming(self._path):
            self._stream.write(orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE))
            self._stream.flush()

    def close(self) -> None:
        """Close the file; a line that did not fit on the disk is tried, and its error raised, once more."""
        with naming(self._path):
            self._stream.close()


class TensorBoardSink:
    """TensorBoard events. Points after the step that the run continues from are purged, so each step appears once.

    Args:
        directory: folder of the event files.
        done_steps: steps done when the run was started or resumed.
    """

    def __init__(self, directory: Path, done_steps: int) -> None:
        self._directory = directory
        self._writer = SummaryWriter(str(directory), purge_step=done_steps + 1)

    def write_step(self, record: Record) -> None:
        """Plot every number of a training step under ``train/``."""
        self._write("train", TRAIN, record)

    def write_eval(self, record: Record) -> None:
        """Plot every number of a validation under ``valid/``."""
        self._write("valid", VALID, record)

    def _write(self, folder: str, schema: Schema, record: Record) -> None:
        step = int(record["step"] or 0)
        with naming(self._directory):
            for name, value in schema.curves(record):
                self._writer.add_scalar(f"{folder}/{name}", value, step)

    def close(self) -> None:
        """Flush and close the event file."""
        with naming(self._directory):
            self._writer.close()


class WandbSink:
    """Weights & Biases.

    Raises:
        ConfigError: the package is not installed.
    """

    def __init__(self, project: str, name: str, config: dict[str, object], directory: Path) -> None:
        try:
            import wandb
        except ImportError:
            raise ConfigError(
                "logging.wandb_project is set, but wandb is not installed",
                got=project,
                remedy="pip install 'megatron_ko[wandb]', or leave logging.wandb_project out",
            ) from None
        # The same id after every resume gives one curve, in which W&B ignores steps that it already has.
        kept = directory / "wandb_id"
        if not kept.is_file():
            write_atomic(kept, uuid.uuid4().hex.encode())
        self._run = wandb.init(
            project=project, name=name, config=config, dir=str(directory), id=kept.read_text(), resume="allow"
        )

    def write_step(self, record: Record) -> None:
        """Log a training step under ``train/``."""
        self._log("train", record)

    def write_eval(self, record: Record) -> None:
        """Log a validation under ``valid/``."""
        self._log("valid", record)

    def _log(self, folder: str, record: Record) -> None:
        numbers = {f"{folder}/{k}": v for k, v in record.items() if k != "step" and isinstance(v, int | float)}
        self._run.log(numbers, step=int(record["step"] or 0))

    def close(self) -> None:
        """Finish the run."""
        self._run.finish()
