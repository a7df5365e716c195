"""Writes megatron-core's tensor files in the training process itself.

megatron-core's own synchronous save uses its asynchronous code path: it starts a manager process and forks one worker
per file. That takes seconds, and an error such as a full disk is only returned as text. PyTorch's underlying writer
does the same work in this process and raises the same error on every rank.
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
    """The ``torch_dist`` format with one file per rank, flushed to disk, without additional processes.

    Args:
        group: a group of all ranks, used to exchange what they write; None: the default group.
    """

    def __init__(self, group: ProcessGroup | None = None) -> None:
        super().__init__("torch_dist", 1, thread_count=1)
        self._group = group

    def async_save(self, sharded_state_dict: dict[str, Any], checkpoint_dir: str | Path, *_: object) -> AsyncRequest:
        """Determine which tensors this rank writes. The returned request writes them when called, on this group.

        Its function raises ``torch.distributed.checkpoint.api.CheckpointException`` on all ranks if writing failed on
        any rank.
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
