"""RMSNorm for the portable back end, under tensor and sequence parallelism."""

import torch
from megatron.core.transformer import TransformerConfig


class RMSNorm(torch.nn.RMSNorm):
    """Root mean square normalisation (Zhang and Sennrich, 2019, arXiv:1910.07467).

    Args:
        config: the model.
        hidden_size: size of the last dimension.
        eps: added to the mean square.
    """

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-5) -> None:
        super().__init__(hidden_size, eps=eps)
        # Under sequence parallelism each tensor-parallel rank sees a part of the tokens. megatron-core sums the
        # gradients of parameters that have this attribute.
        self.weight.sequence_parallel = config.sequence_parallel
