"""The engine: a model on its ranks, its optimizer, and its objective."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from megatron.core.optimizer import ChainedOptimizer

from megatron_ko.config import ModelConfig, RunConfig
from megatron_ko.data.training.batch import Batch
from megatron_ko.models.parameter_policy import ParameterPolicy
from megatron_ko.objectives import Objective
from megatron_ko.parallel.groups import Groups
from megatron_ko.parallel.platform import get_platform
from megatron_ko.train.optimizer import build_optimizer, treat, wrap_data_parallel


@dataclass(frozen=True)
class Engine:
    """Everything that steps and evaluations need; they do not depend on the run.

    Attributes:
        network: the configuration of the model.
        model: the model chunks of this pipeline stage, wrapped for data parallelism.
        optimizer: megatron-core's optimizer for them.
        objective: forward pass and loss.
        groups: process groups and this rank's place in them.
        device: where batches are.
        scales_loss: whether gradients come from a scaled loss (fp16).
    """

    network: ModelConfig
    model: list[torch.nn.Module]
    optimizer: ChainedOptimizer
    objective: Objective[Batch]
    groups: Groups
    device: torch.device
    scales_loss: bool


def build_engine(
    config: RunConfig, chunks: Sequence[torch.nn.Module], groups: Groups, objective: Objective[Batch]
) -> Engine:
    """Wrap model chunks for data parallelism and give them an optimizer."""
    treatment = treat(ParameterPolicy(config.optim.groups), chunks)
    model = wrap_data_parallel(config, chunks, groups)
    return Engine(
        network=config.model,
        model=model,
        optimizer=build_optimizer(config, model, groups, treatment),
        objective=objective,
        groups=groups,
        device=get_platform().device,
        scales_loss=config.precision.dtype == "fp16",
    )
