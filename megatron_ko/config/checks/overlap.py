"""Overlap of communication, and the optimizer in host memory: combinations that megatron-core supports."""

from collections.abc import Iterator

from megatron_ko.config.problems import Problem
from megatron_ko.config.run import RunConfig


def check_overlap(config: RunConfig) -> Iterator[Problem]:
    """Check the requirements of enabled options."""
    parallel, precision = config.parallel, config.precision
    tensor = {
        "parallel.tensor above 1": parallel.tensor > 1,
        "parallel.sequence_parallel": parallel.sequence_parallel,
        "layers of Transformer Engine": precision.layer_backend != "portable",
    }
    experts = {
        "parallel.expert above 1": parallel.expert > 1,
        "parallel.dispatcher alltoall or flex": parallel.dispatcher != "allgather",
        "precision.dtype bf16 or fp16": precision.dtype != "fp32",
        "training.recompute none or selective": config.training.recompute != "full",
        "parallel.virtual_pipeline above 1 if there are pipeline stages": parallel.pipeline == 1
        or parallel.virtual_pipeline > 1,
        "layers of Transformer Engine": precision.layer_backend != "portable",
        "objective.neftune_alpha=0": config.objective.neftune_alpha == 0,
    }
    offload = {"parallel.distributed_optimizer": parallel.distributed_optimizer}
    yield from _unmet("parallel.overlap_tensor", parallel.overlap_tensor, tensor)
    yield from _unmet("parallel.overlap_experts", parallel.overlap_experts, experts)
    yield from _unmet("optim.offload", config.optim.offload, offload)


def _unmet(path: str, value: bool | float, needs: dict[str, bool]) -> Iterator[Problem]:
    missing = [need for need, met in needs.items() if not met]
    if value and missing:
        yield Problem(path=path, got=value, expected=f"together with {'; '.join(missing)}", remedy="remove it")
