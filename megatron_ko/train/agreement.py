"""Makes all ranks fail together: an error on one rank becomes the same error on all of them, not a deadlock."""

from collections.abc import Callable
from typing import TypeVar

import torch.distributed as dist
from torch.distributed.checkpoint.api import CheckpointException

from megatron_ko.errors import CheckpointError

T = TypeVar("T")


def gather_from_ranks(value: T, group: dist.ProcessGroup | None = None) -> list[T]:
    """The values of all ranks, in rank order. A collective; for small objects. ``group`` must hold all ranks."""
    values: list[T] = [value] * dist.get_world_size()
    dist.all_gather_object(values, value, group)
    return values


def on_all_ranks(what: str, action: Callable[[], T], group: dist.ProcessGroup | None = None) -> T:
    """Run an action that writes on every rank. A collective over the default or another group of all ranks.

    Raises:
        CheckpointError: on all ranks, if the action failed on any rank with an error of the operating system or of
            PyTorch's checkpoint writer.
    """
    result: list[T] = []
    failure = None
    try:
        result.append(action())
    except CheckpointException as error:
        failure = "; ".join(sorted({str(cause) for cause, _ in error.failures.values()}))
    except OSError as error:
        failure = str(error)
    failures = sorted({text for text in gather_from_ranks(failure, group) if text})
    if failures:
        raise CheckpointError(
            f"the checkpoint could not be saved: {what} failed",
            got="; ".join(failures),
            remedy="free disk space or repair the file system, then run again; older checkpoints are untouched",
        )
    return result[0]
