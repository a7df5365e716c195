"""Everything that a running training consists of."""

from dataclasses import dataclass

from megatron_ko.config import RunConfig
from megatron_ko.data.training.feed import ReadAhead
from megatron_ko.train.checkpoint import Checkpointer
from megatron_ko.train.engine import Engine
from megatron_ko.train.evaluate import Evaluator
from megatron_ko.train.metrics import MetricStore
from megatron_ko.train.profiler import StepProfiler
from megatron_ko.train.resilience.signals import StopSignals
from megatron_ko.train.routing import StarvationWatch
from megatron_ko.train.state import TrainState

RESOLVED = "config.resolved.yaml"


@dataclass
class Run:
    """One rank's view of a training.

    Attributes:
        config: the resolved configuration.
        engine: model, optimizer and objective.
        feed: batches for each step, prefetched by one step.
        evaluator: runs the validation; None without validation.
        state: progress.
        metrics: writes records.
        starvation: warns about experts without tokens.
        checkpoint: writes checkpoints.
        signals: requests to stop.
        profiler: profiles some steps.
        attention: attention kernels in use, empty if there is no choice; None before the first step.
    """

    config: RunConfig
    engine: Engine
    feed: ReadAhead
    evaluator: Evaluator | None
    state: TrainState
    metrics: MetricStore
    starvation: StarvationWatch
    checkpoint: Checkpointer
    signals: StopSignals
    profiler: StepProfiler
    attention: str | None = None
