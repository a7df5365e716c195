"""Cross entropy, a kernel in Triton: computed by PyTorch, since Triton's interpreter takes a hundred times as long."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist


def cross_entropy_forward(
    logits: torch.Tensor,
    target: torch.Tensor,
    smoothing: float,
    reduce: bool,
    group: Any,
    ignored: int,
    overwrite: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, None, int, int]:
    """Losses [b, s] of logits [b, s, v], and what the backward pass needs: the logarithm of each row's sum."""
    assert smoothing == 0 and not reduce and not bool((target == ignored).any())
    rank, ranks = (group.rank(), group.size()) if group is not None else (0, 1)
    values = logits.float().flatten(0, 1)  # [t, v]
    largest = values.amax(1)
    if ranks > 1:
        dist.all_reduce(largest, dist.ReduceOp.MAX, group=group)
    labels, here = _local(target, rank, values.shape[1])
    chosen = torch.where(here, values.gather(1, labels[:, None]).squeeze(1), 0.0)
    sums = torch.stack([(values - largest[:, None]).exp().sum(1), chosen])
    if ranks > 1:
        dist.all_reduce(sums, group=group)
    logs = largest + sums[0].log()
    saved = logits if overwrite else logits.clone()
    return (logs - sums[1]).view(target.shape), saved, logs, target, None, rank, ranks


def _local(target: torch.Tensor, rank: int, rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Labels as rows of this rank, and whether they are its own."""
    labels = target.flatten() - rank * rows
    here = (labels >= 0) & (labels < rows)
    return labels.clamp(0, rows - 1), here


def cross_entropy_backward(
    saved: torch.Tensor, logs: torch.Tensor, target: torch.Tensor, counted: None, gradient: torch.Tensor,
    smoothing: float, reduce: bool, rank: int, ranks: int, ignored: int,
) -> torch.Tensor:  # fmt: skip
    """The gradient of the logits, in the place of the saved ones."""
    slopes = (saved.float().flatten(0, 1) - logs[:, None]).exp()
    labels, here = _local(target, rank, slopes.shape[1])
    slopes[torch.arange(len(labels)), labels] -= here.float()
    return saved.copy_((slopes * gradient.flatten()[:, None]).view(saved.shape))


def replace() -> None:
    """Compute it here from now on."""
    from transformer_engine.pytorch.triton import cross_entropy as kernel

    kernel.interpreted = (kernel.cross_entropy_forward, kernel.cross_entropy_backward)
    kernel.cross_entropy_forward, kernel.cross_entropy_backward = cross_entropy_forward, cross_entropy_backward


@contextmanager
def interpreted(wanted: bool) -> Iterator[None]:
    """While inside, Transformer Engine's kernel runs itself, in Triton's interpreter, where that is wanted."""
    from transformer_engine.pytorch.triton import cross_entropy as kernel

    before = (kernel.cross_entropy_forward, kernel.cross_entropy_backward)
    if wanted:
        kernel.cross_entropy_forward, kernel.cross_entropy_backward = kernel.interpreted
    try:
        yield
    finally:
        kernel.cross_entropy_forward, kernel.cross_entropy_backward = before
