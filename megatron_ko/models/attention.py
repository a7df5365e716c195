"""The attention of the portable back end, on PyTorch's scaled_dot_product_attention."""

import contextlib

import torch
import torch.nn.functional as F
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.tensor_parallel import get_cuda_rng_tracker
from megatron.core.transformer import MegatronModule, TransformerConfig
from megatron.core.transformer.enums import AttnMaskType
from torch import Tensor


class PortableAttention(MegatronModule):
    """Grouped-query attention (Ainslie et al., 2023, arXiv:2305.13245) with megatron-core's core-attention interface.

    Args:
        config: the model.
        layer_number: number of the layer, from 1.
        attn_mask_type: mask where a call names none.
        attention_type: "self"; megatron-core passes it.
        cp_comm_type: how context-parallel ranks exchange keys and values; there is one rank only.
        softmax_scale: factor on the scores; None: 1 / sqrt(d).
        pg_collection: process groups; heads are split already when they come here.
    """

    def __init__(
        self,
        config: TransformerConfig,
        layer_number: int,
        attn_mask_type: AttnMaskType,
        attention_type: str,
        cp_comm_type: str | None = None,
        softmax_scale: float | None = None,
        pg_collection: ProcessGroupCollection | None = None,
    ) -> None:
        super().__init__(config=config)
        assert config.context_parallel_size == 1, "sequences are not split over ranks"
        assert attention_type == "self", attention_type
        self._mask_type = attn_mask_type
        self._scale = softmax_scale

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        attn_mask_type: AttnMaskType | None = None,
        attention_bias: Tensor | None = None,
        packed_seq_params: PackedSeqParams | None = None,
    ) -> Tensor:
        """Attend.

        Args:
            query: [s, b, n, d], n query heads of this rank.
            key, value: [t, b, g, d], g key/value heads of this rank; t > s when a cache of earlier tokens is used.
            attention_mask: bool, broadcast to [b, n, s, t], True where a query must not look. It is complete: where it
                is given, no causal mask is added.
            attn_mask_type: "causal" (the last query sees all keys) or "no_mask"; read when there is no attention_mask.

        Returns:
            [s, b, n * d].
        """
        assert attention_bias is None and packed_seq_params is None, "not implemented by this back end"
        queries, keys = query.shape[0], key.shape[0]
        mask, causal = None, False
        if attention_mask is not None:
            mask = ~attention_mask
        elif (attn_mask_type or self._mask_type) == AttnMaskType.causal:
            causal = queries == keys
            if not causal:  # PyTorch would align the first query with the first key
                mask = torch.ones(queries, keys, dtype=torch.bool, device=query.device).tril(keys - queries)
        with self._random_state():
            context = F.scaled_dot_product_attention(
                query.permute(1, 2, 0, 3),  # [b, n, s, d]
                key.permute(1, 2, 0, 3),
                value.permute(1, 2, 0, 3),
                attn_mask=mask,
                dropout_p=self._dropout,
                is_causal=causal,
                scale=self._scale,
                enable_gqa=query.shape[2] != key.shape[2],
            )
        return context.permute(2, 0, 1, 3).reshape(*query.shape[:2], -1)

    @property
    def _dropout(self) -> float:
        return float(self.config.attention_dropout) if self.training else 0.0

    def _random_state(self) -> contextlib.AbstractContextManager[None]:
        # Heads are split over tensor-parallel ranks, so each rank draws its own mask. Under sequence parallelism the
        # whole block runs in that state already.
        if self._dropout == 0.0 or self.config.sequence_parallel:
            return contextlib.nullcontext()
        fork: contextlib.AbstractContextManager[None] = get_cuda_rng_tracker().fork()
        return fork
