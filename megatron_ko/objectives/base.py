"""The interface of an objective: a forward pass, and a loss that is reported as sums, never as means.

Means of means are wrong as soon as micro-batches have different numbers of counted tokens. Sums can be added over
micro-batches, ranks and gradient accumulation, and divided once, by the count of the global batch.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol, TypeVar

import torch
from torch import Tensor

Batch_contra = TypeVar("Batch_contra", contravariant=True)


class Unit(Enum):
    """What a mean is taken over. Ranks that share sequences hold part of the tokens, but all of the pairs."""

    TOKEN = "token"
    PAIR = "pair"

    @property
    def shared_by_context_ranks(self) -> bool:
        """Whether the ranks of a context group hold the same units, so that only one of them may count."""
        return self is not Unit.TOKEN


@dataclass(frozen=True)
class Term:
    """A part of the loss: ``weight`` times the mean of a quantity over all units of the global batch.

    Attributes:
        name: its key in ``LossOutput.sums``.
        unit: what its mean is taken over.
        weight: its factor in the loss.
    """

    name: str
    unit: Unit = Unit.TOKEN
    weight: float = 1.0


@dataclass(frozen=True)
class LossOutput:
    """The loss of one micro-batch on one rank; every tensor is a scalar on the device.

    Attributes:
        sums: for each term, the sum over this rank's units, in nats, fp32, with its autograd graph.
        metrics: other quantities as (sum, count) pairs, without a graph.
    """

    sums: dict[str, Tensor]
    metrics: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)


class Objective(Protocol[Batch_contra]):
    """A training objective. It knows the batch and the loss, not the schedule.

    Attributes:
        terms: the terms that add up to the loss; the unit of the first one is the unit of the loss.
        metric_names: keys of ``LossOutput.metrics``, known on every rank before a loss is computed.
    """

    terms: tuple[Term, ...]
    metric_names: tuple[str, ...]

    def forward(self, batch: Batch_contra, model: torch.nn.Module) -> Tensor:
        """Run one model chunk on one micro-batch.

        Returns:
            On the last pipeline stage the input of ``loss``; on the others the hidden states [s, b, h] to send on.
        """
        ...

    def count(self, batch: Batch_contra) -> Mapping[Unit, Tensor]:
        """Trained tokens, and other units that terms are means over, of a micro-batch on this rank: int64 scalars.

        It is known before any loss is computed, and on every pipeline stage.
        """
        ...

    def loss(self, output: Tensor, batch: Batch_contra) -> LossOutput:
        """Turn the last stage's output into sums. Called on the last pipeline stage only."""
        ...

    def observer(self) -> "Objective[Batch_contra] | None":
        """What to measure on the whole global batch before its loss can be computed; None: nothing."""
        ...

    def observe(self, metrics: Mapping[str, float]) -> None:
        """Take the means that the ``observer`` found, the same on every rank."""
        ...
