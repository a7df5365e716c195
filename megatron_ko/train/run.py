"""Everything that a running training consists of, in one place and by name."""

from dataclasses import dataclass

import torch
from megatron.core.optimizer import ChainedOptimizer

from megatron_ko.config import RunConfig
from megatron_ko.data.origins import Samples
from megatron_ko.data.pretrain import TokenBatch, TokenBatches
from megatron_ko.objectives import Objective
from megatron_ko.parallel.groups import Groups
from megatron_ko.train.checkpoint import Checkpointer
from megatron_ko.train.metrics import MetricStore
from megatron_ko.train.profiler import StepProfiler
from megatron_ko.train.resilience.signals import StopSignals
from megatron_ko.train.routing import StarvationWatch
from megatron_ko.train.state import TrainState
from megatron_ko.train.summary import tokens_per_step


@dataclass
class Run:
    """One rank's view of a training.

    Attributes:
        config: the resolved configuration.
        groups: process groups and this rank's place in them.
        device: where batches go.
        model: the model chunks of this pipeline stage, wrapped for data parallelism.
        optimizer: megatron-core's optimizer over them.
        objective: forward pass and loss.
        batches: this rank's micro-batches, one list a step.
        valid_data: validation sequences, the same on every rank; None without validation.
        bytes_per_token: bytes of text per validation token, or None where unknown.
        state: progress.
        metrics: where records go.
        starvation: what warns of experts without tokens.
        checkpoint: writer of checkpoints.
        signals: requests to stop.
        profiler: what watches some steps.
        attention: kernels that attention runs on, empty where there is no choice; None before the first step.
    """

    config: RunConfig
    groups: Groups
    device: torch.device
    model: list[torch.nn.Module]
    optimizer: ChainedOptimizer
    objective: Objective[TokenBatch]
    batches: TokenBatches
    valid_data: Samples | None
    bytes_per_token: float | None
    state: TrainState
    metrics: MetricStore
    starvation: StarvationWatch
    checkpoint: Checkpointer
    signals: StopSignals
    profiler: StepProfiler
    attention: str | None = None

    @property
    def tokens_per_step(self) -> int:
        """Tokens of one step over all ranks."""
        return tokens_per_step(self.config)
