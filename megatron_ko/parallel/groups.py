"""The process groups of a run: built once, then passed explicitly. Only this package reads megatron-core's globals."""

from dataclasses import dataclass

import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.process_groups_config import ProcessGroupCollection

from megatron_ko.config import ParallelConfig

# Tensor-parallel neighbours are adjacent ranks, so they share a node; pipeline stages are farthest apart.
_ORDER = "tp-cp-ep-dp-pp"


@dataclass(frozen=True)
class Groups:
    """This rank's position on every parallel axis.

    Attributes:
        pg: megatron-core's process groups.
        rank: number of this rank in the world.
        world_size: ranks in the world.
        tp_rank, tp_size: tensor axis.
        pp_rank, pp_size: pipeline axis.
        cp_rank, cp_size: context axis.
        dp_rank, dp_size: data axis (without context).
        ep_rank, ep_size: expert axis, which spans the others.
        vp_size: model chunks per pipeline stage.
    """

    pg: ProcessGroupCollection
    rank: int
    world_size: int
    tp_rank: int
    tp_size: int
    pp_rank: int
    pp_size: int
    cp_rank: int
    cp_size: int
    dp_rank: int
    dp_size: int
    ep_rank: int
    ep_size: int
    vp_size: int

    @property
    def is_first_stage(self) -> bool:
        """Whether this rank holds the embedding."""
        return self.pp_rank == 0

    @property
    def is_last_stage(self) -> bool:
        """Whether this rank holds the output layer and computes the loss."""
        return self.pp_rank == self.pp_size - 1


def initialise(parallel: ParallelConfig, timeout_s: float) -> Groups:
    """Build every process group of a layout. A collective: the default group must exist, and every rank must call it.

    Args:
        parallel: sizes of the axes; data parallelism takes what is left of the world.
        timeout_s: seconds after which a collective that does not complete is an error.
    """
    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=parallel.tensor,
        pipeline_model_parallel_size=parallel.pipeline,
        virtual_pipeline_model_parallel_size=parallel.virtual_pipeline if parallel.virtual_pipeline > 1 else None,
        context_parallel_size=parallel.context,
        expert_model_parallel_size=parallel.expert,
        expert_tensor_parallel_size=parallel.expert_tensor_size,
        distributed_timeout_minutes=timeout_s / 60,
        order=_ORDER,
        # Additional gloo groups are only needed for a checkpoint format that is not used here.
        create_gloo_process_groups=False,
    )
    pg = ProcessGroupCollection.use_mpu_process_groups()
    return Groups(
        pg=pg,
        rank=dist.get_rank(),
        world_size=dist.get_world_size(),
        tp_rank=pg.tp.rank(),
        tp_size=pg.tp.size(),
        pp_rank=pg.pp.rank(),
        pp_size=pg.pp.size(),
        cp_rank=pg.cp.rank(),
        cp_size=pg.cp.size(),
        dp_rank=pg.dp.rank(),
        dp_size=pg.dp.size(),
        ep_rank=pg.ep.rank(),
        ep_size=pg.ep.size(),
        vp_size=parallel.virtual_pipeline,
    )


def destroy() -> None:
    """Discard the layout, so that another one can be built with the same ranks."""
    parallel_state.destroy_model_parallel()
