"""The attention of the portable back end, on PyTorch's scaled_dot_product_attention."""

import contextlib

import torch.nn.functional as F
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.tensor_parallel import get_cuda_rng_tracker
from megatron.core.transformer import MegatronModule, TransformerConfig
from megatron.core.transformer.enums import AttnMaskType
from torch import Tensor

from megatron_ko.models.attention_choice import name_kernel
from megatron_ko.models.attention_kernels import View, attend
from megatron_ko.models.context_parallel import gather_in_order, positions_of
from megatron_ko.parallel.platform import get_platform


class PortableAttention(MegatronModule):
    """Causal grouped-query attention (Ainslie et al., 2023, arXiv:2305.13245) with megatron-core's interface.

    Args:
        config: the model; ``window_size`` is the window of this layer (``models/windows.py``).
        layer_number: number of the layer, from 1.
        attn_mask_type: causal; megatron-core passes it.
        attention_type: "self"; megatron-core passes it.
        softmax_scale: factor on the scores; None: 1 / sqrt(d).
        cp_comm_type: how context-parallel ranks exchange keys and values: "all_gather".
        pg_collection: process groups; sequences are split over ``cp``. Heads have been split before.

    Attributes:
        window: earlier tokens that a token sees besides itself; None: all.
        scale: factor on the scores; None: 1 / sqrt(d).
    """

    def __init__(
        self,
        config: TransformerConfig,
        layer_number: int,
        attn_mask_type: AttnMaskType,
        attention_type: str,
        softmax_scale: float | None = None,
        cp_comm_type: str | None = None,
        pg_collection: ProcessGroupCollection | None = None,
    ) -> None:
        super().__init__(config=config)
        assert attention_type == "self" and attn_mask_type == AttnMaskType.causal
        self.window: int | None = config.window_size[0] if config.window_size else None
        self.scale = softmax_scale
        self.attention_kernel: str | None = None
        self._context = pg_collection.cp if pg_collection and config.context_parallel_size > 1 else None

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
        """Compute attention. Each query sees the keys up to its own position; the last query is at the last key.

        Args:
            query: [s, b, n, d], n query heads of this rank.
            key, value: [t, b, g, d], g key/value heads of this rank; t > s when a cache of earlier tokens is used.
                With context parallelism s = t are the tokens of this rank.
            attention_mask: [b, t] integers, the document of each token of the whole sequence; None: a single document.
            attn_mask_type: megatron-core passes "no_mask" for queries after a cache; they are causal all the same.

        Returns:
            [s, b, n * d].
        """
        assert attention_bias is None and packed_seq_params is None, "not implemented by this back end"
        queries, earlier = len(query), len(key) - len(query)
        positions: tuple[range, ...] = (range(earlier, earlier + queries),)
        if self._context is not None:
            assert earlier == 0, "a cache of whole sequences"
            positions = positions_of(queries, self._context.rank(), self._context.size())
            key, value = gather_in_order((key, value), self._context)
        query, key, value = (tensor.permute(1, 2, 0, 3) for tensor in (query, key, value))  # [b, n, s, d]
        keys = key.shape[2]
        window = self.window if self.window is not None and self.window < keys - 1 else None
        if window is None and attention_mask is None and positions == (range(keys),):
            context = self._attend_causally(query, key, value)
        elif window is None and attention_mask is None and queries == 1 and self._context is None:
            context = self._attend(query, key, value, is_causal=False)  # one token after a cache sees all of it
        else:
            assert self._dropout == 0.0, "checked with the configuration"
            context = attend(query, key, value, View(positions, window, attention_mask), self.scale)
        return context.permute(2, 0, 1, 3).flatten(2)  # [s, b, n * d]

    def _attend_causally(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        if self.attention_kernel is None and get_platform().device_type == "cuda":
            self.attention_kernel = name_kernel(query, key, value)
        with self._random_state():
            return self._attend(query, key, value, is_causal=True)

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, is_causal: bool) -> Tensor:
        return F.scaled_dot_product_attention(
            query,
            key,
            value,
            dropout_p=self._dropout,
            is_causal=is_causal,
            scale=self.scale,
            enable_gqa=query.shape[1] != key.shape[1],
        )

    @property
    def _dropout(self) -> float:
        return float(self.config.attention_dropout) if self.training else 0.0

    def _random_state(self) -> contextlib.AbstractContextManager[None]:
        # Heads are split over tensor-parallel ranks, so each rank draws its own mask. Under sequence parallelism the
        # whole block already uses that random state.
        if self._dropout == 0.0 or self.config.sequence_parallel:
            return contextlib.nullcontext()
        fork: contextlib.AbstractContextManager[None] = get_cuda_rng_tracker().fork()
        return fork
