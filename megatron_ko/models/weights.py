"""Weights as distributed tensors, as checkpoints store them; any layout can read them."""

import warnings
from collections.abc import Container, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.core import CheckpointingException
from megatron.core.dist_checkpointing.mapping import ShardedObject, ShardedTensor, ShardedTensorFactory
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.api import CheckpointException

from megatron_ko.errors import CheckpointError
from megatron_ko.models.adapter_weights import MARK
from megatron_ko.parallel.compat import allow_pickled_states


def sharded_weights(chunks: Sequence[torch.nn.Module]) -> dict[str, Any]:
    """This rank's parts of the weights. Tensor names are global: they do not depend on the layout.

    Of a model with adapters only these: everything else is as it was at the start.

    Args:
        chunks: model chunks as returned by ``build_model``, without the data-parallel wrapper.

    Returns:
        One entry per chunk; the tensors in it are the parameters themselves, not copies.
    """
    return {f"chunk{index}": _trained(chunk.sharded_state_dict()) for index, chunk in enumerate(chunks)}


def _trained(part: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in part.items() if MARK in value.key} or part


def load_weights(chunks: Sequence[torch.nn.Module], path: Path, *, states: bool = False) -> None:
    """Read the weights of a checkpoint of any layout into model chunks. A collective: every rank must call it.

    Args:
        chunks: model chunks as returned by ``build_model``.
        path: folder written by ``dist_checkpointing``.
        states: whether to also read scaling states of 8-bit layers, if there are any. They are Python objects that
            can run code when they are read: use it only for files that this run has written itself.

    Raises:
        CheckpointError: the folder is not a checkpoint, or belongs to another model.
    """
    wanted = sharded_weights(chunks)
    loaded = _read(wanted, path, states=states)
    with allow_pickled_states() if states else nullcontext():
        for index, chunk in enumerate(chunks):
            # Some modules of Transformer Engine require a state. If none was read, pass their current one.
            own = {name: value for name, value in chunk.state_dict().items() if name.endswith("_extra_state")}
            with_adapters = any(MARK in value.key for value in wanted[f"chunk{index}"].values())
            chunk.load_state_dict({**own, **loaded[f"chunk{index}"]}, strict=not with_adapters)


def load_weights_alone(chunk: torch.nn.Module, path: Path) -> None:
    """``load_weights`` of a whole model on the only rank, without a second copy of any weight.

    megatron-core reads gate and up projection apart, because ranks hold halves of both, and joins them in new tensors:
    more than a third of the weights of a model again. One rank reads them as one tensor, in place.

    Raises:
        CheckpointError: the folder is not a checkpoint, or belongs to another model.
    """
    wanted = {name: _undivided(value) for name, value in chunk.sharded_state_dict().items()}
    own = {name: value for name, value in chunk.state_dict().items() if name.endswith("_extra_state")}
    chunk.load_state_dict({**own, **_read({"chunk0": wanted}, path)["chunk0"]})


def _undivided(value: Any) -> Any:
    """Gate and up projection of one layer as one tensor; anything else as it is."""
    if not isinstance(value, ShardedTensorFactory):
        return value
    parts = value.build()
    if not isinstance(parts, list) or not all(isinstance(part, ShardedTensor) for part in parts):
        return value
    leading = parts[0].prepend_axis_num
    if any(part.key != value.key or part.global_shape[leading:] != tuple(value.data.shape) for part in parts):
        return value
    places = [(axis, parts[0].global_offset[axis], parts[0].global_shape[axis]) for axis in range(leading)]
    return ShardedTensor.from_rank_offsets(
        value.key, value.data, *places, replica_id=value.replica_id, prepend_axis_num=leading
    )


def _read(wanted: dict[str, Any], path: Path, *, states: bool = False) -> dict[str, Any]:
    """Read distributed tensors and, if asked for, states."""
    try:
        with warnings.catch_warnings():
            # megatron-core's reader uses deprecated PyTorch functions; a user cannot change that.
            warnings.simplefilter("ignore", FutureWarning)
            stored = FileSystemReader(path).read_metadata().state_dict_metadata
            kept = stored if states else ()
            there = {name: _without_absent_states(part, kept) for name, part in wanted.items()}
            loaded: dict[str, Any] = dist_checkpointing.load(there, str(path))
    except (CheckpointingException, CheckpointException, FileNotFoundError) as error:
        # PyTorch's exception holds the failures of all ranks; one of them is enough.
        reason = next(iter(error.failures.values()))[0] if isinstance(error, CheckpointException) else error
        raise CheckpointError(
            "weights cannot be read", got=f"{path}: {reason}", expected="weights of the configured model"
        ) from error
    return loaded


def _without_absent_states(part: dict[str, Any], stored: Container[str]) -> dict[str, Any]:
    """Leave out scaling states of 8-bit layers that the checkpoint does not have, for example an imported one."""
    return {
        name: value
        for name, value in part.items()
        if not isinstance(value, ShardedObject) or value.unique_key in stored
    }
