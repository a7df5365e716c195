"""RMSNorm and rotary positions."""

from typing import Any

import torch

from stub.casts import quantize
from stub.extension import kernel
from stub.formats import TORCH, matrix


@kernel
def rmsnorm_fwd(
    x: torch.Tensor, weight: torch.Tensor, eps: float, out: Any, quantizer: Any, out_dtype: Any, margin: int,
    zero_centered: bool,
) -> tuple[Any, None, torch.Tensor]:  # fmt: skip
    """The output is rounded to its type before it is quantised, as the kernels do by default."""
    values = matrix(x).float()
    inverse = torch.rsqrt(values.square().mean(1) + eps)
    gamma = weight.detach().float() + zero_centered
    result = (values * inverse[:, None] * gamma).to(TORCH[int(out_dtype)]).view(x.shape)
    if quantizer is not None:
        return quantize(result, quantizer, out), None, inverse
    return result if out is None else out.copy_(result), None, inverse


@kernel
def rmsnorm_bwd(
    gradient: torch.Tensor, x: torch.Tensor, inverse: torch.Tensor, weight: torch.Tensor, margin: int,
    zero_centered: bool,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """Gradients of input and weight."""
    outer, values = matrix(gradient).float(), matrix(x).float()
    normal = values * inverse[:, None]
    inner = outer * (weight.detach().float() + zero_centered)
    to_input = inverse[:, None] * (inner - normal * (inner * normal).mean(1, keepdim=True))
    return to_input.to(x.dtype).view(x.shape), (outer * normal).sum(0).to(weight.dtype)


def _turn(values: torch.Tensor, angles: torch.Tensor, sign: float, layout: int) -> torch.Tensor:
    """Rotate [s, b, n, d] (layout 0) or [b, s, n, d] (1) by angles [positions, 1, 1, width]."""
    length = values.shape[layout]
    turns = angles.reshape(angles.shape[0], -1)[:length].float()
    width = turns.shape[-1]
    shape = (length, 1, 1, width) if layout == 0 else (1, length, 1, width)
    head, rest = values[..., :width].float(), values[..., width:]
    left, right = head.chunk(2, -1)
    turned = head * turns.cos().view(shape) + torch.cat([-right, left], -1) * (turns.sin() * sign).view(shape)
    return torch.cat([turned.to(values.dtype), rest], -1)


def _check(start: Any, layout: Any, interleaved: bool, lengths: Any, ranks: int) -> None:
    assert start is None and not interleaved and lengths is None and ranks == 1 and int(layout) in (0, 1)


@kernel
def fused_rope_forward(
    values: torch.Tensor, angles: torch.Tensor, start: Any, layout: Any, interleaved: bool, lengths: Any, ranks: int,
    rank: int,
) -> torch.Tensor:  # fmt: skip
    """Rotary positions."""
    _check(start, layout, interleaved, lengths, ranks)
    return _turn(values, angles, 1.0, int(layout))


@kernel
def fused_rope_backward(
    gradient: torch.Tensor, angles: torch.Tensor, start: Any, layout: Any, interleaved: bool, lengths: Any, ranks: int,
    rank: int,
) -> torch.Tensor:  # fmt: skip
    """The other way round."""
    _check(start, layout, interleaved, lengths, ranks)
    return _turn(gradient, angles, -1.0, int(layout))
