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

from megatron_ko.models.attention_kernels import TiledAttention, lowest_visible


class PortableAttention(MegatronModule):
    """Causal grouped-query attention (Ainslie et al., 2023, arXiv:2305.13245) with megatron-core's interface.

    Args:
        config: the model; ``window_size`` is the window of this layer (``models/windows.py``).
        layer_number: number of the layer, from 1.
        attn_mask_type: causal; megatron-core passes it.
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
        assert attn_mask_type == AttnMaskType.causal, attn_mask_type
        self._window: int | None = config.window_size[0] if config.window_size else None
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
        """Attend. The last query stands at the last key; every query sees the keys up to its own place.

        Args:
            query: [s, b, n, d], n query heads of this rank.
            key, value: [t, b, g, d], g key/value heads of this rank; t > s when a cache of earlier tokens is used.
            attention_mask: [b, t] integers, the document of each token, or None: one document.
            attn_mask_type: megatron-core passes "no_mask" for queries after a cache; they are causal like all others.

        Returns:
            [s, b, n * d].
        """
        assert attention_bias is None and packed_seq_params is None, "not implemented by this back end"
        queries, keys = query.shape[0], key.shape[0]
        inputs = [tensor.permute(1, 2, 0, 3) for tensor in (query, key, value)]  # [b, n, s, d]
        if queries == keys and attention_mask is None and (self._window is None or self._window >= keys - 1):
            context = self._attend_causally(*inputs)
        else:
            assert self._dropout == 0.0, "checked with the configuration"
            positions = range(keys - queries, keys)
            places = torch.arange(positions.start, positions.stop, device=query.device)
            lowest = lowest_visible(places, self._window, attention_mask)
            context = TiledAttention.apply(*inputs, (positions,), lowest, self._scale)
        return context.permute(2, 0, 1, 3).reshape(*query.shape[:2], -1)

    def _attend_causally(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        with self._random_state():
            return F.scaled_dot_product_attention(
                query,
                key,
                value,
                dropout_p=self._dropout,
                is_causal=True,
                scale=self._scale,
                enable_gqa=query.shape[1] != key.shape[1],
            )

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
