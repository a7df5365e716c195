"""The few exchanges between ranks that this project does itself; all others are megatron-core's."""

from typing import TypeVar

import torch
import torch.distributed as dist

from megatron_ko.parallel.platform import get_platform

T = TypeVar("T")


def all_reduce_sum(tensor: torch.Tensor, group: dist.ProcessGroup | None = None) -> torch.Tensor:
    """Sum a tensor over a group (None: all ranks), in place. Not differentiable. Returns the tensor."""
    dist.all_reduce(tensor, group=group)
    return tensor


def any_rank(flag: bool) -> bool:
    """Whether the flag is set on any rank: how ranks agree on what would be a rank-local decision, a deadlock."""
    votes = torch.tensor([int(flag)], dtype=torch.int32, device=get_platform().device)
    dist.all_reduce(votes, op=dist.ReduceOp.MAX)
    return bool(votes.item())


def broadcast_object(obj: T, src: int = 0) -> T:
    """The object of rank ``src`` on every rank; it must be picklable. What other ranks pass is ignored."""
    box = [obj]
    dist.broadcast_object_list(box, src=src, device=get_platform().device)
    return box[0]


def barrier() -> None:
    """Return when every rank has come here."""
    dist.barrier()
