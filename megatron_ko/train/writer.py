"""megatron-core's tensor files, written by the training process itself.

megatron-core's own synchronous save goes through its asynchronous machinery: it starts a manager process and forks one
worker per file. That costs seconds, and an error such as a full disk comes back as text. PyTorch's writer, which
underlies it, does the same work in this process and raises the same error on every rank.
"""

from pathlib import Path
from typing import Any

import torch.distributed.checkpoint as dcp
from megatron.core.dist_checkpointing.strategies.torch import (
    MCoreSavePlanner,
    TorchDistSaveShardedStrategy,
    _replace_state_dict_keys_with_sharded_keys,
    mcore_to_pyt_state_dict,
)


class InProcessSave(TorchDistSaveShardedStrategy):
    """The ``torch_dist`` format, one file a rank, flushed to the disk, without further processes."""

    def __init__(self) -> None:
        super().__init__("torch_dist", 1, thread_count=1)

    def save(self, sharded_state_dict: dict[str, Any], checkpoint_dir: str | Path) -> None:
        """Write this rank's main replicas. A collective.

        Raises:
            torch.distributed.checkpoint.api.CheckpointException: on every rank, when writing failed on any.
        """
        named, _, _ = _replace_state_dict_keys_with_sharded_keys(sharded_state_dict, self.keep_only_main_replica)
        dcp.save(
            mcore_to_pyt_state_dict(named, False),
            storage_writer=dcp.FileSystemWriter(checkpoint_dir, thread_count=self.thread_count, sync_files=True),
            planner=MCoreSavePlanner(dedup_replicated_tensors=False, flatten_state_dict=False),
        )
