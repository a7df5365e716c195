"""Output layer and cross entropy with Transformer Engine's kernels, for logits that fit in memory.

The kernels read the logits once in the forward pass, and once more in the backward pass to turn them into their
gradient. PyTorch's elementwise operations would need a dozen passes.
"""

from typing import Any

import torch
from torch import Tensor

from megatron_ko.models.vocabulary import Vocabulary


class FusedLinearCrossEntropy(torch.autograd.Function):
    """[t, h], [v, h] and labels [t] to losses [t]. Gradients of ``hidden`` are those of this rank's rows alone.

    For bf16 and fp32. Padding rows of the vocabulary have probability 0.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, labels: Tensor, vocabulary: Vocabulary) -> Tensor:
        from transformer_engine.pytorch import parallel_cross_entropy

        logits = (hidden @ weight.t()).unsqueeze(0)
        logits[..., vocabulary.rows_in_use(len(weight)) :] = torch.finfo(logits.dtype).min
        group = vocabulary.group if vocabulary.group.size() > 1 else None
        with torch.enable_grad():
            losses = parallel_cross_entropy(logits.requires_grad_(), labels.unsqueeze(0), dist_process_group=group)
        ctx.save_for_backward(hidden, weight)
        ctx.logits, ctx.losses = logits, losses
        return losses.detach().squeeze(0)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight = ctx.saved_tensors
        logits, losses = ctx.logits, ctx.losses
        del ctx.logits, ctx.losses  # freed here: otherwise the loss would keep them alive during the next micro-batch
        (slopes,) = torch.autograd.grad(losses, logits, gradients[0].unsqueeze(0))
        slopes = slopes.squeeze(0)
        weight_gradient = slopes.t() @ hidden if ctx.needs_input_grad[1] else None
        return slopes @ weight, weight_gradient, None, None
