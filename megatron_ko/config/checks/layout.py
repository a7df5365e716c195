"""Can the network be spread as asked?"""

from collections.abc import Iterator

from megatron_ko.config.checks.divisors import divisors
from megatron_ko.config.parallel import ParallelConfig
from megatron_ko.config.problems import Problem
from megatron_ko.config.run import RunConfig


def check_layout(config: RunConfig) -> Iterator[Problem]:
    """Sizes of the axes against the dimensions of the network."""
    parallel, model = config.parallel, config.model
    if parallel.tensor not in tensor_sizes(config):
        yield Problem(
            path="parallel.tensor",
            got=parallel.tensor,
            expected=f"a size that divides {model.num_attention_heads} query heads, {model.query_groups} key/value "
            f"heads and ffn_hidden_size {model.ffn_hidden_size}",
            remedy=f"one of {tensor_sizes(config)}",
        )
    chunks = parallel.pipeline * parallel.virtual_pipeline
    if model.num_layers % chunks:
        yield Problem(
            path="parallel.pipeline",
            got=f"{parallel.pipeline} stages x {parallel.virtual_pipeline} chunks",
            expected=f"a product that divides num_layers {model.num_layers}",
            remedy=f"a product out of {divisors(model.num_layers)}",
        )
    if parallel.virtual_pipeline > 1 and parallel.pipeline == 1:
        yield Problem(
            path="parallel.virtual_pipeline", got=parallel.virtual_pipeline, expected="1 without pipeline stages"
        )
    if parallel.context > 1:
        yield Problem(
            path="parallel.context", got=parallel.context, expected="1: this version does not split sequences"
        )
    yield from _check_switches(parallel, config.data.sequence_length)


def _check_switches(parallel: ParallelConfig, sequence_length: int) -> Iterator[Problem]:
    if parallel.sequence_parallel and parallel.tensor == 1:
        yield Problem(
            path="parallel.sequence_parallel", got=True, expected="false when parallel.tensor is 1: it has no effect"
        )
    if parallel.sequence_parallel and sequence_length % parallel.tensor:
        yield Problem(
            path="data.sequence_length",
            got=sequence_length,
            expected=f"a multiple of parallel.tensor {parallel.tensor} under sequence parallelism",
        )
    if parallel.overlap_param_gather and not (parallel.distributed_optimizer and parallel.overlap_grad_reduce):
        yield Problem(
            path="parallel.overlap_param_gather",
            got=True,
            expected="distributed_optimizer and overlap_grad_reduce to be on as well",
        )


def tensor_sizes(config: RunConfig) -> list[int]:
    """Tensor-parallel sizes that divide the heads, the key/value heads and the feed-forward layer."""
    model = config.model
    return [t for t in divisors(model.query_groups) if model.ffn_hidden_size % t == 0]


def describe_layouts(config: RunConfig, world_size: int) -> Iterator[str]:
    """Every layout that fits a number of ranks, in words."""
    for tensor in tensor_sizes(config):
        for pipeline in divisors(config.model.num_layers):
            if world_size % (tensor * pipeline) == 0:
                yield f"tensor {tensor} x pipeline {pipeline} x data {world_size // (tensor * pipeline)}"
