"""What an objective is: a forward pass, and a loss told as a sum and a count, never as a mean.

Means of means are wrong as soon as micro-batches hold different numbers of counted tokens. Sums and counts can be added
over micro-batches, ranks and gradient accumulation, and be divided once, by the global denominator.
"""

from dataclasses import dataclass, field
from typing import Protocol, TypeVar

import torch
from torch import Tensor

Batch_contra = TypeVar("Batch_contra", contravariant=True)


@dataclass(frozen=True)
class LossOutput:
    """The loss of one micro-batch on one rank; every tensor is a scalar on the device.

    Attributes:
        loss_sum: sum of the loss over the counted tokens, in nats, fp32, with its graph.
        count: number of counted tokens, int64.
        metrics: further quantities as (sum, count) pairs, without graph.
    """

    loss_sum: Tensor
    count: Tensor
    metrics: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)


class Objective(Protocol[Batch_contra]):
    """A training objective. It knows the batch type and the loss, not the parallel layout.

    Attributes:
        metric_names: keys of ``LossOutput.metrics``, known on every rank before a loss is computed.
    """

    metric_names: tuple[str, ...]

    def forward(self, batch: Batch_contra, model: torch.nn.Module) -> Tensor:
        """Run one model chunk on one micro-batch.

        Returns:
            On the last pipeline stage what ``loss`` takes; on the others the hidden states [s, b, h] to send on.
        """
        ...

    def count(self, batch: Batch_contra) -> Tensor:
        """The count of ``loss``, known before it is computed, and on every pipeline stage."""
        ...

    def loss(self, output: Tensor, batch: Batch_contra) -> LossOutput:
        """Turn the last stage's output into sums and counts. Called on the last pipeline stage only."""
        ...
