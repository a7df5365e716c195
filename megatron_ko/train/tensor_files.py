"""megatron-core's tensor files, written by the training process itself.

megatron-core's own synchronous save goes through its asynchronous machinery: it starts a manager process and forks one
worker per file. That costs seconds, and an error such as a full disk comes back as text. PyTorch's writer, which
underlies it, does the same work in this process and raises the same error on every rank.
"""

from pathlib import Path
from typing import Any

import torch.distributed.checkpoint as dcp
from megatron.core.dist_checkpointing.strategies.async_utils import AsyncRequest
from megatron.core.dist_checkpointing.strategies.torch import (
    MCoreSavePlanner,
    TorchDistSaveShardedStrategy,
    _replace_state_dict_keys_with_sharded_keys,
    mcore_to_pyt_state_dict,
)
from torch.distributed import ProcessGroup


class InProcessSave(TorchDistSaveShardedStrategy):
    """The ``torch_dist`` format, one file a rank, flushed to the disk, without further processes.

    Args:
        group: all ranks, where the ranks exchange what they write; None: the world.
    """

    def __init__(self, group: ProcessGroup | None = None) -> None:
        super().__init__("torch_dist", 1, thread_count=1)
        self._group = group

    def async_save(self, sharded_state_dict: dict[str, Any], checkpoint_dir: str | Path, *_: object) -> AsyncRequest:
        """Find out which tensors this rank writes. The request writes them when it is called, on this object's group.

        Its function raises ``torch.distributed.checkpoint.api.CheckpointException`` on every rank, when writing failed
        on any.
        """
        named, _, _ = _replace_state_dict_keys_with_sharded_keys(sharded_state_dict, self.keep_only_main_replica)
        return AsyncRequest(self._write, (mcore_to_pyt_state_dict(named, False), checkpoint_dir), [])

    def save(self, sharded_state_dict: dict[str, Any], checkpoint_dir: str | Path) -> None:
        """Write this rank's main replicas. A collective."""
        request = self.async_save(sharded_state_dict, checkpoint_dir)
        self._write(*request.async_fn_args)

    def _write(self, tensors: dict[str, Any], directory: str | Path) -> None:
        dcp.save(
            tensors,
            storage_writer=dcp.FileSystemWriter(directory, thread_count=self.thread_count, sync_files=True),
            planner=MCoreSavePlanner(dedup_replicated_tensors=False, flatten_state_dict=False),
            process_group=self._group,
        )
