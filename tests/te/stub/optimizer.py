"""What the optimizer does to many tensors at once."""

from typing import Any

import torch

from stub.extension import kernel, kernels


@kernel
def multi_tensor_adam(
    chunk: int, noop: Any, lists: Any, lr: float, beta1: float, beta2: float, eps: float, step: int, mode: int,
    bias_correction: int, decay: float,
) -> None:  # fmt: skip
    """Adam (mode 0: decay in the gradient) or AdamW (1); a fifth list gets the weights in a smaller type."""
    first_correction, second_correction = (1 - beta1**step, 1 - beta2**step) if bias_correction else (1.0, 1.0)
    gradients, weights, first, second = lists[:4]
    for gradient, weight, mean, square in zip(gradients, weights, first, second, strict=True):
        slope = gradient.float() + (decay * weight.float() if mode == 0 else 0.0)
        mean.mul_(beta1).add_(slope, alpha=1 - beta1)
        square.mul_(beta2).addcmul_(slope, slope, value=1 - beta2)
        update = (mean / first_correction) / ((square / second_correction).sqrt() + eps)
        if mode == 1:
            update = update + decay * weight.float()
        weight.sub_((lr * update).to(weight.dtype))
    for weight, small in zip(weights, lists[4] if len(lists) > 4 else (), strict=False):
        small.copy_(weight)


@kernel
def multi_tensor_l2norm(
    chunk: int, noop: Any, lists: Any, per_tensor: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Norm of all tensors together, and of each."""
    norms = torch.stack([tensor.float().norm() for tensor in lists[0]]) if lists[0] else torch.zeros(0)
    return norms.norm().reshape(1), norms if per_tensor else torch.zeros(0)


@kernels("multi_tensor_scale", "multi_tensor_scale_tensor")
def scale(chunk: int, noop: torch.Tensor, lists: Any, factor: Any) -> None:
    """Scaled copies; the flag is set where one is not finite."""
    for source, target in zip(*lists, strict=True):
        target.copy_(source.float() * float(factor))
        if not bool(target.isfinite().all()):
            noop.fill_(1)
