"""How the model is spread over ranks."""

import math
from typing import Annotated, Literal

from pydantic import Field

from megatron_ko.config.section import Resume, Section


class ParallelConfig(Section):
    """Sizes of the parallel axes. Data parallelism takes the ranks that are left over."""

    resume = Resume.FREE

    tensor: int = Field(1, gt=0, description="Ranks that share each matrix. Keep it within one node.")
    pipeline: int = Field(1, gt=0, description="Pipeline stages.")
    virtual_pipeline: int = Field(
        1, gt=0, description="Model chunks per pipeline stage (interleaved schedule); more chunks, smaller bubble."
    )
    context: int = Field(1, gt=0, description="Ranks that share each sequence.")
    context_exchange: Literal["all_gather", "p2p", "a2a"] = Field(
        "all_gather",
        description="How they exchange keys and values; portable layers can all_gather only.",
    )
    expert: int = Field(1, gt=0, description="Ranks that share the experts of a layer; taken from the other axes.")
    expert_tensor: int | None = Field(
        None, gt=0, description="Ranks that share the matrices of one expert; None: as many as parallel.tensor."
    )
    dispatcher: Literal["alltoall", "allgather", "flex"] = Field(
        "alltoall", description="How tokens travel to their experts; flex: DeepEP, where it is installed."
    )
    first_stage_layers: int | None = Field(
        None, gt=0, description="Layers on the first pipeline stage; None: as many as on the others."
    )
    last_stage_layers: int | None = Field(
        None, gt=0, description="Layers on the last pipeline stage; None: as many as on the others."
    )
    embedding_as_layer: bool = Field(False, description="Count the embedding as one layer when stages are laid out.")
    loss_as_layer: bool = Field(False, description="Count the output layer and the loss as one layer likewise.")
    sequence_parallel: bool = Field(
        False, description="Split norms and dropout along the sequence over the tensor-parallel ranks; saves memory."
    )
    distributed_optimizer: Annotated[bool, Resume.BOUND] = Field(
        True, description="Shard the optimizer state over the data-parallel ranks (ZeRO-1); costs no accuracy."
    )
    overlap_grad_reduce: bool = Field(False, description="Reduce gradients while the backward pass runs.")
    overlap_param_gather: bool = Field(
        False, description="Gather parameters while the forward pass runs; needs the distributed optimizer."
    )
    overlap_tensor: bool = Field(
        False, description="Send what tensor-parallel ranks exchange while matrices are multiplied; needs TE."
    )
    overlap_experts: bool = Field(
        False, description="Send tokens to experts while another micro-batch is computed; needs TE."
    )

    @property
    def expert_tensor_size(self) -> int:
        """Ranks that share the matrices of one expert."""
        return self.expert_tensor or self.tensor

    @property
    def expert_ranks(self) -> int:
        """Ranks of a pipeline stage that hold one copy of its experts."""
        return self.expert * self.expert_tensor_size

    @property
    def model_size(self) -> int:
        """Ranks that hold one copy of the model, experts aside."""
        return self.tensor * self.pipeline * self.context

    @property
    def smallest_world(self) -> int:
        """Ranks of the smallest world that this layout fits."""
        return self.pipeline * math.lcm(self.tensor * self.context, self.expert_ranks)
