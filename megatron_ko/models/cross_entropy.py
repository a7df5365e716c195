"""Output layer and cross entropy in one: the logits of a large vocabulary are never all in memory at once.

Logits of T tokens over v ids take 4 T v bytes in fp32, more than the rest of a small model. Here they are computed in
pieces of as many tokens as a limit allows. For the backward pass only the log-sum-exp of each token is kept, and the
logits are computed again (as in Wijmans et al., 2024, arXiv:2411.09009). A batch within the limit is computed in one
piece, and only once.
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.tensor_parallel import (
    copy_to_tensor_model_parallel_region,
    gather_from_sequence_parallel_region,
)
from torch import Tensor

from megatron_ko.models.fused_cross_entropy import FusedLinearCrossEntropy
from megatron_ko.models.vocabulary import Vocabulary


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    vocabulary: Vocabulary,
    *,
    sequence_parallel: bool,
    limit: int,
    fused: bool = False,
) -> Tensor:
    """Loss of each token: the negative log-probability of its label under softmax(hidden @ weight.T).

    Padding rows of the vocabulary have probability 0 and receive no gradient.

    Args:
        hidden: [s, b, h], or this rank's part of s under sequence parallelism.
        weight: [v, h], this rank's rows of the vocabulary.
        labels: [b, s], ids of the whole vocabulary.
        vocabulary: which rows ``weight`` holds.
        sequence_parallel: whether ``hidden`` is split along the sequence.
        limit: bytes that fp32 logits may take at a time on this rank.
        fused: whether Transformer Engine's kernels are used for a batch within the limit.

    Returns:
        [b, s] in fp32, the same on all ranks of the group.
    """
    spread = gather_from_sequence_parallel_region if sequence_parallel else copy_to_tensor_model_parallel_region
    hidden = spread(hidden, group=vocabulary.group)
    hidden, targets = hidden.flatten(0, 1), labels.t().flatten()
    if fused and 4 * len(hidden) * len(weight) <= limit:
        losses = FusedLinearCrossEntropy.apply(hidden, weight, targets, vocabulary)
    else:
        losses = _LinearCrossEntropy.apply(hidden, weight, targets, vocabulary, limit)
    return losses.view(labels.shape[1], labels.shape[0]).t().contiguous()


class _LinearCrossEntropy(torch.autograd.Function):
    """[t, h], [v, h] and labels [t] to losses [t]. Gradients of ``hidden`` are those of this rank's rows alone."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, labels: Tensor, vocabulary: Vocabulary, limit: int) -> Tensor:
        group = vocabulary.group
        tokens, rows = hidden.shape[0], weight.shape[0]
        labels = labels - group.rank() * rows  # local row of a label; outside [0, rows) on the ranks without it
        log_sums = hidden.new_empty(tokens, dtype=torch.float32)
        wanted = hidden.new_zeros(tokens, dtype=torch.float32)
        pieces, used = list(_pieces(tokens, rows, limit)), vocabulary.rows_in_use(rows)
        for piece in pieces:
            logits = _logits(hidden[piece], weight, used)
            index, mine = _rows_of(labels[piece], rows)
            wanted[piece] = logits.gather(1, index).squeeze(1).masked_fill(~mine, 0.0)
            highest = logits.amax(-1)
            powers = logits.sub_(highest.unsqueeze(1)).exp_()
            log_sums[piece] = highest + powers.sum(-1).log()
        total = _log_sum_over(log_sums, group)
        if group.size() > 1:
            dist.all_reduce(wanted, group=group)
        # In a single piece, the exponentials are kept; one factor per token turns them into the softmax over all ranks.
        kept = (powers, highest - total) if len(pieces) == 1 else (None, total)
        ctx.save_for_backward(hidden, weight, labels, *kept)
        ctx.pieces, ctx.used = pieces, used
        return total - wanted

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        hidden, weight, labels, powers, logs = ctx.saved_tensors
        if powers is not None:
            slopes = powers.mul_((logs.exp() * gradient).unsqueeze(1))  # used once: a step runs backward once
            slopes = _minus_labels(slopes, labels, gradient).to(weight.dtype)
            weight_gradient = slopes.t() @ hidden if ctx.needs_input_grad[1] else None
            return slopes @ weight, weight_gradient, None, None, None
        hidden_gradient = torch.empty_like(hidden)
        total = torch.zeros_like(weight, dtype=torch.float32) if ctx.needs_input_grad[1] else None
        for piece in ctx.pieces:
            slopes = _logits(hidden[piece], weight, ctx.used).sub_(logs[piece].unsqueeze(1)).exp_()
            slopes.mul_(gradient[piece].unsqueeze(1))
            slopes = _minus_labels(slopes, labels[piece], gradient[piece]).to(weight.dtype)
            hidden_gradient[piece] = slopes @ weight
            if total is not None:
                _add_product(total, slopes.t(), hidden[piece])
        return hidden_gradient, None if total is None else total.to(weight.dtype), None, None, None


def _pieces(tokens: int, rows: int, limit: int) -> Iterator[slice]:
    """Slices of the tokens whose fp32 logits are within the limit; each has at least one token."""
    length = max(1, limit // (4 * rows))
    for start in range(0, tokens, length):
        yield slice(start, min(start + length, tokens))


def _logits(hidden: Tensor, weight: Tensor, used: int) -> Tensor:
    """[t, v] in fp32. Padding rows get the lowest finite number: a rank may have nothing else."""
    logits = (hidden @ weight.t()).float()
    logits[:, used:] = torch.finfo(torch.float32).min
    return logits


def _rows_of(labels: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    """Row of each label as [t, 1] (0 if it is on another rank), and whether it is on this rank as [t]."""
    mine = (labels >= 0) & (labels < rows)
    return labels.masked_fill(~mine, 0).unsqueeze(1), mine


def _minus_labels(slopes: Tensor, labels: Tensor, gradient: Tensor) -> Tensor:
    """Turn g p into g (p - [label]), the gradient of the logits, in place."""
    index, mine = _rows_of(labels, slopes.shape[1])
    return slopes.scatter_add_(1, index, -(gradient * mine).unsqueeze(1))


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Add left @ right to an fp32 total; in one pass if both factors are fp32."""
    if left.dtype == total.dtype:
        total.addmm_(left, right)
    else:
        total += left @ right


def _log_sum_over(log_sums: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Log-sum-exp over the rows of all ranks, from the log-sum-exp of each rank."""
    if group.size() == 1:
        return log_sums
    highest = log_sums.clone()
    dist.all_reduce(highest, op=dist.ReduceOp.MAX, group=group)
    share = (log_sums - highest).exp()
    dist.all_reduce(share, group=group)
    return highest + share.log()
