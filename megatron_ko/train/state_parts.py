"""The parts of a run's state besides plain numbers, and how each part is saved and restored."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from megatron.core import dist_checkpointing
from megatron.core.optimizer import ChainedOptimizer

from megatron_ko.models.weights import load_weights, sharded_weights

_METADATA = {"distrib_optim_sharding_type": "fully_reshardable", "chained_optim_avoid_prefix": True}

# A saved optimizer has these, too, but the configuration's values apply. Rate and decay are set before every step.
CONFIGURED = ("betas", "eps")


class StatePart(Protocol):
    """A part of the state whose tensors are distributed over ranks."""

    def sharded(self) -> dict[str, Any]:
        """This rank's parts of the tensors, with global names; they are the state itself, not copies. A collective."""
        ...

    def load(self, directory: Path) -> None:
        """Read them from a folder written under any layout. A collective."""
        ...


class Weights:
    """The weights, with the stored states of routers and 8-bit layers.

    Args:
        wrapped: model chunks in their data-parallel wrapper.
        gathers_late: whether updated weights reach other ranks only in their next forward pass.
    """

    def __init__(self, wrapped: Sequence[torch.nn.Module], gathers_late: bool) -> None:
        self._wrapped, self._gathers_late = wrapped, gathers_late
        self._chunks = [chunk.module for chunk in wrapped]

    def sharded(self) -> dict[str, Any]:
        """See ``StatePart``."""
        for chunk in self._wrapped if self._gathers_late else ():
            chunk.start_param_sync(force_sync=True)
        return sharded_weights(self._chunks)

    def load(self, directory: Path) -> None:
        """See ``StatePart``."""
        load_weights(self._chunks, directory, states=True)


class OptimizerState:
    """fp32 masters, moments and step counts.

    Args:
        optimizer: the optimizer.
        wrapped: the model chunks that it updates.
    """

    def __init__(self, optimizer: ChainedOptimizer, wrapped: Sequence[torch.nn.Module]) -> None:
        self._optimizer, self._chunks = optimizer, [chunk.module for chunk in wrapped]

    def sharded(self) -> dict[str, Any]:
        """See ``StatePart``."""
        return self._state(is_loading=False)

    def load(self, directory: Path) -> None:
        """See ``StatePart``."""
        configured = [{name: group[name] for name in CONFIGURED} for group in self._optimizer.param_groups]
        loaded = dist_checkpointing.load(self._state(is_loading=True), str(directory))
        self._optimizer.load_state_dict(loaded["optimizer"])
        for group, values in zip(self._optimizer.param_groups, configured, strict=True):
            group.update(values)

    def _state(self, is_loading: bool) -> dict[str, Any]:
        weights = sharded_weights(self._chunks)
        return {"optimizer": self._optimizer.sharded_state_dict(weights, is_loading=is_loading, metadata=_METADATA)}
