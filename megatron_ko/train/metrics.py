"""The metric store: a record per step, validation and expert snapshot, each exactly once, even after a kill."""

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from megatron_ko.errors import KoError
from megatron_ko.log import get_logger
from megatron_ko.metrics.schema import EXPERTS, SUPERSEDED, TRAIN, VALID, Schema
from megatron_ko.parallel.platform import get_platform
from megatron_ko.train.routing import routing_means, routing_record
from megatron_ko.train.sinks import JsonLines, Sink
from megatron_ko.train.state import Evaluation, Record, StepResult, TrainState

_log = get_logger(__name__)


@dataclass(frozen=True)
class Rates:
    """The numbers that turn a step's duration into throughput.

    Attributes:
        tokens_per_step: tokens of one step over all ranks.
        flops_per_token: model FLOPs of training on one token.
        world_size: number of ranks.
        peak_flops: dense peak of one device in FLOP/s, or None if it is unknown.
    """

    tokens_per_step: int
    flops_per_token: float
    world_size: int
    peak_flops: float | None


class MetricStore:
    """Writes records on rank 0; on other ranks it has no files and does nothing.

    Args:
        directory: ``metrics`` of the run directory, or None on ranks that do not write.
        sinks: other receivers.
        rates: for throughput.
        routing_interval: steps between two records of the loads of all experts; 0 for a model without experts.
    """

    def __init__(self, directory: Path | None, sinks: Sequence[Sink], rates: Rates, routing_interval: int = 0) -> None:
        self._train = JsonLines(directory / TRAIN.file) if directory else None
        self._valid = JsonLines(directory / VALID.file) if directory else None
        self._experts = JsonLines(directory / EXPERTS) if directory and routing_interval else None
        self._sinks, self._rates, self._routing_interval = list(sinks), rates, routing_interval

    def record(self, state: TrainState, result: StepResult, seconds: float, attention: str | None = None) -> None:
        """Write the record of the step that ``state`` has just finished, with its duration and attention kernel."""
        if self._train is None:
            return
        rates, memory = self._rates, get_platform().memory()
        tokens_per_s = rates.tokens_per_step / seconds
        flops = tokens_per_s * rates.flops_per_token / rates.world_size
        record: Record = {
            "step": state.step,
            "loss": result.loss,
            "loss_hex": result.loss.hex(),
            "grad_norm": result.grad_norm,
            "lr": result.lr,
            "tokens": state.tokens,
            "samples": state.samples,
            "step_time_s": seconds,
            "tokens_per_s": tokens_per_s,
            "loss_scale": result.loss_scale,
            "skipped": result.skipped,
            "memory_peak": memory.allocated_peak,
            "memory_reserved": memory.reserved,
            "tflops": flops / 1e12,
            "mfu": flops / rates.peak_flops if rates.peak_flops else None,
            "time": time.time(),
            **result.metrics,
            **routing_means(result.routing),
            **_by_source(TRAIN, state.source_tokens),
            **({"attention": attention} if attention else {}),
        }
        TRAIN.check(record)
        self._write(self._train, record)
        if self._experts is not None and state.step % self._routing_interval == 0:
            self._write(self._experts, routing_record(state.step, result.routing))
        for sink in self._sinks:
            sink.write_step(record)

    def record_eval(self, state: TrainState, evaluation: Evaluation) -> None:
        """Write the record of a validation of the current weights."""
        if self._valid is None:
            return
        record: Record = {
            "step": state.step,
            "tokens": state.tokens,
            "valid_loss": evaluation.loss,
            "valid_loss_hex": evaluation.loss.hex(),
            "perplexity": evaluation.perplexity,
            "bits_per_byte": evaluation.bits_per_byte,
            "samples": evaluation.samples,
            "valid_tokens": evaluation.tokens,
            "eval_time_s": evaluation.seconds,
            "time": time.time(),
            **evaluation.metrics,
            **_by_source(VALID, evaluation.by_source),
        }
        VALID.check(record)
        self._write(self._valid, record)
        for sink in self._sinks:
            sink.write_eval(record)

    def positions(self) -> dict[str, int]:
        """Byte lengths of the metric files, for a checkpoint; empty on ranks that do not write."""
        files = {TRAIN.file: self._train, VALID.file: self._valid, EXPERTS: self._experts}
        return {name: lines.position for name, lines in files.items() if lines is not None}

    def close(self) -> None:
        """Flush and close every receiver."""
        for sink in self._sinks:
            sink.close()
        for lines in (self._train, self._valid, self._experts):
            if lines is not None:
                lines.close()

    @staticmethod
    def _write(lines: JsonLines, record: Mapping[str, object]) -> None:
        try:
            lines.write(record)
        except OSError as error:
            remedy = "free disk space, then run again: it resumes"
            raise KoError("a metric record could not be written", got=error, remedy=remedy) from error


def _by_source(schema: Schema, values: Mapping[str, float | int | None]) -> Record:
    """A key for each source if there are several; for a single one the record already has the value."""
    return {f"{schema.by_source}{name}": value for name, value in values.items()} if len(values) > 1 else {}


def rewind(directory: Path, positions: dict[str, int]) -> int:
    """Cut the metric files back to their state at a checkpoint, so that the steps after it appear once.

    Removed lines are kept in ``superseded.jsonl``. Files that the checkpoint does not list are emptied.

    Returns:
        The number of removed lines.
    """
    cut = 0
    for name in (TRAIN.file, VALID.file, EXPERTS):
        path, position = directory / name, positions.get(name, 0)
        size = path.stat().st_size if path.is_file() else 0
        if size < position:
            _warn_of_lost_records(path, size, position)
        if size <= position:
            continue
        with path.open("r+b") as stream:
            stream.seek(position)
            tail = stream.read()
            with (directory / SUPERSEDED).open("ab") as kept:
                kept.write(tail if tail.endswith(b"\n") else tail + b"\n")
                kept.flush()
                os.fsync(kept.fileno())
            stream.truncate(position)
        cut += len(tail.splitlines())
    return cut


def _warn_of_lost_records(path: Path, size: int, position: int) -> None:
    """Warn that records are missing, and end an incomplete last line, so that the next one starts a new line."""
    _log.warning("%s has %d bytes; the checkpoint had seen %d: records were lost", path, size, position)
    if size and not path.read_bytes().endswith(b"\n"):
        with path.open("ab") as stream:
            stream.write(b"\n")
