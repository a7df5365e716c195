"""Next-token prediction: the cross-entropy of every unmasked label."""

import torch
from torch import Tensor

from megatron_ko.data.training.batch import Batch
from megatron_ko.objectives.base import LossOutput


class LanguageModelling:
    """The pre-training objective. Implements ``Objective`` for ``Batch``."""

    metric_names: tuple[str, ...] = ()

    def forward(self, batch: Batch, model: torch.nn.Module) -> Tensor:
        """Per-token losses [b, s] on the last pipeline stage, hidden states [s, b, h] on the others."""
        output: Tensor = model(batch.tokens, batch.position_ids, batch.documents, labels=batch.labels)
        return output

    def count(self, batch: Batch) -> Tensor:
        """Labels that are not masked."""
        return batch.loss_mask.sum().to(torch.int64)

    def loss(self, output: Tensor, batch: Batch) -> LossOutput:
        """Sum of the losses [b, s] where the mask [b, s] is 1, and how many those are."""
        loss_sum = torch.sum(output.float() * batch.loss_mask)
        return LossOutput(loss_sum=loss_sum, count=self.count(batch))
