"""Overlap of communication with computation: between tensor-parallel ranks, and to and from experts."""

from typing import Any

from megatron_ko.errors import ConfigError
from megatron_ko.models.blueprint import Blueprint
from megatron_ko.models.specs import uses_transformer_engine


def overlap_settings(blueprint: Blueprint) -> dict[str, Any]:
    """The fields of TransformerConfig for overlap. Also allocates the buffers that tensor-parallel layers use.

    Raises:
        ConfigError: the layers are portable ones, which cannot overlap.
    """
    parallel = blueprint.parallel
    wanted = {"overlap_tensor": parallel.overlap_tensor, "overlap_experts": parallel.overlap_experts}
    if any(wanted.values()) and not uses_transformer_engine(blueprint.precision.layer_backend):
        names = [f"parallel.{name}" for name, on in wanted.items() if on]
        raise ConfigError(
            "portable layers cannot overlap communication",
            got=", ".join(names),
            expected="a CUDA device with Transformer Engine",
            remedy=" ".join(f"{name}=false" for name in names),
        )
    if parallel.overlap_tensor and blueprint.training is not None:
        _allocate_buffers(
            (blueprint.training.micro_batch_size * blueprint.sequence_length // parallel.context),
            blueprint.model.hidden_size,
            parallel.tensor,
            blueprint.precision.recipe != "none",
        )
    return {"tp_comm_overlap": parallel.overlap_tensor, "overlap_moe_expert_parallel_comm": parallel.overlap_experts}


_allocated: list[tuple[int, int, int, bool]] = []  # the buffers of this process, one entry at most


def _allocate_buffers(tokens: int, hidden_size: int, ranks: int, low_precision: bool) -> None:
    """Allocate Transformer Engine's user buffers; these ranks exchange [tokens, hidden_size].

    A process has one set of buffers, which its layers find by name. Another shape replaces them, and models that were
    built for the old shape can no longer be run.
    """
    from transformer_engine.pytorch.module.base import UserBufferQuantizationMode, destroy_ub, initialize_ub

    wanted = (tokens, hidden_size, ranks, low_precision)
    if _allocated == [wanted]:
        return
    if _allocated:
        destroy_ub()
        _allocated.clear()
    modes = [UserBufferQuantizationMode.NONE]
    if low_precision:
        modes.insert(0, UserBufferQuantizationMode.FP8)
    initialize_ub(shape=[tokens, hidden_size], tp_size=ranks, quantization_modes=modes, bootstrap_backend="nccl")
    _allocated.append(wanted)
