"""megatron-core's GPTModel, with this project's loss at its end."""

from typing import Any

from megatron.core.models.gpt import GPTModel
from torch import Tensor

from megatron_ko.models.cross_entropy import linear_cross_entropy
from megatron_ko.models.vocabulary import Vocabulary


class Decoder(GPTModel):
    """A GPTModel whose loss never holds more than ``logits_limit`` bytes of fp32 logits.

    Args:
        token_ids: size of the vocabulary; additional rows of the output layer are padding.
        logits_limit: in bytes, on this rank.
        fused_loss: whether Transformer Engine's kernels compute the loss of a batch within the limit.
        kwargs: GPTModel's.
    """

    def __init__(self, *, token_ids: int, logits_limit: int, fused_loss: bool, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._token_ids, self._logits_limit, self._fused_loss = token_ids, logits_limit, fused_loss

    def _preprocess(self, *args: Any, padding_mask: Tensor | None = None, **kwargs: Any) -> Any:
        """megatron-core's, which cuts the mask [b, s] for sequence parallelism on the first pipeline stage only."""
        if padding_mask is not None and self.config.sequence_parallel and not self.pre_process:
            group = self.pg_collection.tp
            padding_mask = padding_mask.chunk(group.size(), dim=1)[group.rank()].contiguous()
        return super()._preprocess(*args, padding_mask=padding_mask, **kwargs)

    def _postprocess(self, hidden_states: Tensor, *, labels: Tensor | None, **kwargs: Any) -> Tensor:
        """Turn the last hidden states [s, b, h] into losses [b, s]; without labels, into what GPTModel returns."""
        if labels is None or not self.post_process:
            output: Tensor = super()._postprocess(hidden_states=hidden_states, labels=labels, **kwargs)
            return output
        shared = self.share_embeddings_and_output_weights
        return linear_cross_entropy(
            hidden_states,
            self.shared_embedding_or_output_weight() if shared else self.output_layer.weight,
            labels,
            Vocabulary(self._token_ids, self.pg_collection.tp),
            sequence_parallel=self.config.sequence_parallel,
            limit=self._logits_limit,
            fused=self._fused_loss,
        )
