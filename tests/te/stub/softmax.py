"""Softmax with a scale and a mask, of attention that is not fused."""

import torch

from stub.extension import kernel, kernels


def _softmax(scores: torch.Tensor, scale: float, mask: torch.Tensor | None, filled: float) -> torch.Tensor:
    scaled = scores.float() * scale
    return torch.softmax(scaled if mask is None else scaled.masked_fill(mask, filled), -1).to(scores.dtype)


@kernel
def scaled_softmax_forward(scores: torch.Tensor, scale: float) -> torch.Tensor:
    """Without a mask."""
    return _softmax(scores, scale, None, 0.0)


@kernel
def scaled_masked_softmax_forward(scores: torch.Tensor, mask: torch.Tensor, scale: float) -> torch.Tensor:
    """With the mask of the caller; the kernel does not take masked scores for impossible, but for very small."""
    return _softmax(scores, scale, mask, -10000.0)


@kernels("scaled_upper_triang_masked_softmax_forward", "scaled_aligned_causal_masked_softmax_forward")
def causal(scores: torch.Tensor, scale: float) -> torch.Tensor:
    """Causal, the last query seeing the last key."""
    queries, keys = scores.shape[-2:]
    mask = torch.ones(queries, keys, dtype=torch.bool).triu(keys - queries + 1)
    return _softmax(scores, scale, mask, -torch.inf)


@kernels(
    "scaled_softmax_backward",
    "scaled_masked_softmax_backward",
    "scaled_upper_triang_masked_softmax_backward",
    "scaled_aligned_causal_masked_softmax_backward",
)
def backward(gradient: torch.Tensor, output: torch.Tensor, scale: float) -> torch.Tensor:
    """Gradient of the scores."""
    outer, weights = gradient.float(), output.float()
    return ((outer - (outer * weights).sum(-1, keepdim=True)) * weights * scale).to(output.dtype)
