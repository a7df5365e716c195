"""A process group of one rank in the current process, for inference and conversion."""

import functools

import torch.distributed as dist

from megatron_ko.config import ParallelConfig
from megatron_ko.machine.place import Place
from megatron_ko.parallel.groups import Groups, initialise
from megatron_ko.parallel.rank import join_world, take_place


@functools.cache
def single_world() -> Groups:
    """The groups of a single rank, created by the first call and shared by all models of this process."""
    if not dist.is_initialized():
        alone = Place(rank=0, local_rank=0, world_size=1, local_size=1)
        take_place(alone, None)
        join_world(dist.HashStore(), alone, timeout_s=600)
    return initialise(ParallelConfig(), timeout_s=600)
