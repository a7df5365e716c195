"""The few collectives that this project calls itself; all others are in megatron-core."""

from typing import TypeVar

import torch
import torch.distributed as dist

from megatron_ko.parallel.platform import get_platform

T = TypeVar("T")


def all_reduce_sum(tensor: torch.Tensor, group: dist.ProcessGroup | None = None) -> torch.Tensor:
    """Sum a tensor over a group (None: all ranks), in place. Not differentiable. Returns the tensor."""
    dist.all_reduce(tensor, group=group)
    return tensor


def broadcast_object(obj: T, src: int = 0, group: dist.ProcessGroup | None = None) -> T:
    """Return the object of rank ``src`` on every rank; it must be picklable. Arguments of other ranks are ignored.

    ``group`` is a gloo group of all ranks; without it, the default group is used.
    """
    box = [obj]
    dist.broadcast_object_list(box, src=src, group=group, device=get_platform().device if group is None else None)
    return box[0]


def barrier() -> None:
    """Wait until every rank has called this."""
    dist.barrier()
