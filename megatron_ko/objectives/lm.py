"""Next-token prediction: the cross-entropy of every unmasked label."""

from collections.abc import Mapping

import torch
from torch import Tensor

from megatron_ko.data.training.batch import Batch
from megatron_ko.objectives.base import LossOutput, Objective, Term, Unit


class LanguageModelling:
    """The pre-training objective. Implements ``Objective`` for ``Batch``."""

    terms: tuple[Term, ...] = (Term("nll"),)
    metric_names: tuple[str, ...] = ()

    def forward(self, batch: Batch, model: torch.nn.Module) -> Tensor:
        """Per-token losses [b, s] on the last pipeline stage, hidden states [s, b, h] on the others."""
        padding = batch.padding()
        told = {} if padding is None else {"padding_mask": padding}  # experts do not balance it
        output: Tensor = model(batch.tokens, batch.position_ids, batch.documents, labels=batch.labels, **told)
        return output

    def observer(self) -> "Objective[Batch] | None":
        """Nothing has to be known before."""
        return None

    def observe(self, metrics: Mapping[str, float]) -> None:
        """Nothing was asked for."""

    def count(self, batch: Batch) -> dict[Unit, Tensor]:
        """Labels that are not masked."""
        return {Unit.TOKEN: batch.loss_mask.sum().to(torch.int64)}

    def loss(self, output: Tensor, batch: Batch) -> LossOutput:
        """Sum of the losses [b, s] where the mask [b, s] is 1."""
        return LossOutput({"nll": torch.sum(output.float() * batch.loss_mask)})
