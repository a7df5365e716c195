"""Supervised fine-tuning: the cross-entropy of the answers in conversations."""

import torch
from torch import Tensor

from megatron_ko.config.objective import ObjectiveConfig
from megatron_ko.data.training.batch import Batch
from megatron_ko.objectives.embedding_noise import draw_noise, noisy_embeddings
from megatron_ko.objectives.lm import LanguageModelling
from megatron_ko.parallel.groups import Groups


class FineTuning(LanguageModelling):
    """Next-token prediction where the mask is the answers': a mean over the trained tokens of the global batch.

    Not a mean over conversations: a short answer weighs less than a long one, at any layout and batch size alike.

    Args:
        config: its noise.
        groups: the ranks.
    """

    def __init__(self, config: ObjectiveConfig, groups: Groups) -> None:
        self._alpha, self._seed, self._groups = config.neftune_alpha, config.neftune_seed, groups

    def forward(self, batch: Batch, model: torch.nn.Module) -> Tensor:
        """Losses [b, s] or hidden states [s, b, h]; while training, with noise on the embeddings."""
        if not self._alpha or not model.training:
            return super().forward(batch, model)
        settings = model.config
        noise = draw_noise(
            batch.document_lengths(),
            settings.hidden_size,
            self._alpha,
            [self._seed + sample for sample in batch.samples],
            self._groups.cp_rank,
            self._groups.cp_size,
        )
        with noisy_embeddings(model, noise, self._groups, settings.sequence_parallel):
            return super().forward(batch, model)
