"""How the model is spread over ranks."""

from pydantic import Field

from megatron_ko.config.section import Section


class ParallelConfig(Section):
    """Sizes of the parallel axes. Data parallelism takes the ranks that are left over."""

    tensor: int = Field(1, gt=0, description="Ranks that share each matrix. Keep it within one node.")
    pipeline: int = Field(1, gt=0, description="Pipeline stages.")
    virtual_pipeline: int = Field(
        1, gt=0, description="Model chunks per pipeline stage (interleaved schedule); more chunks, smaller bubble."
    )
    context: int = Field(1, gt=0, description="Ranks that share each sequence.")
    sequence_parallel: bool = Field(
        False, description="Split norms and dropout along the sequence over the tensor-parallel ranks; saves memory."
    )
    distributed_optimizer: bool = Field(
        True, description="Shard the optimizer state over the data-parallel ranks (ZeRO-1); costs no accuracy."
    )
    overlap_grad_reduce: bool = Field(False, description="Reduce gradients while the backward pass runs.")
    overlap_param_gather: bool = Field(
        False, description="Gather parameters while the forward pass runs; needs the distributed optimizer."
    )

    @property
    def model_size(self) -> int:
        """Ranks that hold one copy of the model."""
        return self.tensor * self.pipeline * self.context
