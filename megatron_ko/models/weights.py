"""Weights as distributed tensors: what a checkpoint writes, and what any layout can read."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.core import CheckpointingException
from torch.distributed.checkpoint.api import CheckpointException

from megatron_ko.errors import CheckpointError


def sharded_weights(chunks: Sequence[torch.nn.Module]) -> dict[str, Any]:
    """This rank's parts of the weights. Names inside are global: they do not depend on the layout.

    Args:
        chunks: model chunks as ``build_model`` gives them, without the data-parallel wrapper.

    Returns:
        One entry per chunk; the tensors in it are the parameters themselves, not copies.
    """
    return {f"chunk{index}": chunk.sharded_state_dict() for index, chunk in enumerate(chunks)}


def load_weights(chunks: Sequence[torch.nn.Module], path: Path) -> None:
    """Read the weights of a checkpoint, written at any layout, into model chunks. A collective: every rank calls it.

    Args:
        chunks: model chunks as ``build_model`` gives them.
        path: folder that ``dist_checkpointing`` wrote.

    Raises:
        CheckpointError: the folder is not a checkpoint, or one of another model.
    """
    try:
        loaded = dist_checkpointing.load(sharded_weights(chunks), str(path))
    except (CheckpointingException, CheckpointException) as error:
        # PyTorch's collects what went wrong on each rank; one of them is enough to see it.
        reason = next(iter(error.failures.values()))[0] if isinstance(error, CheckpointException) else error
        raise CheckpointError(
            "weights cannot be read", got=f"{path}: {reason}", expected="weights of the configured model"
        ) from error
    for index, chunk in enumerate(chunks):
        chunk.load_state_dict(loaded[f"chunk{index}"])
