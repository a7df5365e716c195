"""Checks whether the network supports the parallel layout."""

from collections.abc import Iterator

from megatron_ko.config.checks.divisors import divisors
from megatron_ko.config.model import ModelConfig
from megatron_ko.config.parallel import ParallelConfig
from megatron_ko.config.problems import Problem
from megatron_ko.config.run import RunConfig


def check_layout(config: RunConfig) -> Iterator[Problem]:
    """Check the sizes of the axes against the dimensions of the network."""
    parallel, model = config.parallel, config.model
    yield from check_tensor_size(model, parallel.tensor)
    if model.moe and model.ffn_hidden_size % parallel.expert_tensor_size:
        yield Problem(
            path="parallel.expert_tensor",
            got=parallel.expert_tensor_size,
            expected=f"a size that divides ffn_hidden_size {model.ffn_hidden_size}, the width of an expert",
            remedy=f"one of {divisors(model.ffn_hidden_size)[:8]}",
        )
    yield from _check_stages(parallel, model.num_layers)
    yield from _check_switches(parallel, config.data.sequence_length)


def check_tensor_size(model: ModelConfig, tensor: int) -> Iterator[Problem]:
    """Check whether ``tensor`` ranks can share the heads and the feed-forward layer."""
    if tensor not in tensor_sizes(model):
        yield Problem(
            path="parallel.tensor",
            got=tensor,
            expected=f"a size that divides {model.num_attention_heads} query heads and the feed-forward layer, and "
            f"divides or is a multiple of {model.query_groups} key/value heads",
            remedy=f"one of {tensor_sizes(model)}",
        )


def tensor_sizes(model: ModelConfig) -> list[int]:
    """Tensor-parallel sizes that are possible with the heads and the feed-forward layer.

    There may be more ranks than key/value heads: several ranks then compute the same head.
    """
    heads, groups = model.num_attention_heads, model.query_groups
    qkv = (heads + 2 * groups) * model.kv_channels
    # Experts are split over expert-tensor-parallel ranks, a shared expert like a dense layer.
    feed_forward = model.moe.shared_ffn_hidden_size if model.moe else model.ffn_hidden_size
    return [
        size
        for size in divisors(heads)
        if (groups % size == 0 or size % groups == 0) and qkv % size == 0 and feed_forward % size == 0
    ]


def stage_layers(parallel: ParallelConfig, num_layers: int) -> list[int] | None:
    """Layers of each pipeline stage, counting embedding and loss as layers if configured; None if they do not fit."""
    first, last = parallel.first_stage_layers, parallel.last_stage_layers
    rest = num_layers + parallel.embedding_as_layer + parallel.loss_as_layer - (first or 0) - (last or 0)
    equal = parallel.pipeline - (first is not None) - (last is not None)
    if equal == 0:
        stages = [first, last] if rest == 0 else []
    else:
        stages = [first, *[rest // equal] * equal, last] if rest > 0 and rest % equal == 0 else []
    sizes = [size for size in stages if size is not None]
    return sizes if sizes and not any(size % parallel.virtual_pipeline for size in sizes) else None


def _check_stages(parallel: ParallelConfig, num_layers: int) -> Iterator[Problem]:
    by_number = {"first_stage_layers": parallel.first_stage_layers, "last_stage_layers": parallel.last_stage_layers}
    by_weight = {"embedding_as_layer": parallel.embedding_as_layer, "loss_as_layer": parallel.loss_as_layer}
    if parallel.pipeline == 1:
        return
    if any(by_number.values()) and any(by_weight.values()):
        yield Problem(
            path=next(f"parallel.{name}" for name, value in by_weight.items() if value),
            got=True,
            expected="false with first_stage_layers or last_stage_layers, which set the stages explicitly",
            remedy="remove it, or remove those",
        )
    elif stage_layers(parallel, num_layers) is None:
        yield Problem(
            path="parallel.pipeline",
            got=f"{parallel.pipeline} stages x {parallel.virtual_pipeline} chunks",
            expected=f"the same number of layers in every chunk, out of {_layers_in_words(parallel, num_layers)}",
            remedy=f"{_fitting_stages(parallel, num_layers)}, or other values of virtual_pipeline, "
            f"{', '.join(by_number)}, {', '.join(by_weight)}",
        )


def _layers_in_words(parallel: ParallelConfig, num_layers: int) -> str:
    words = f"num_layers {num_layers}"
    words += " + the embedding" * parallel.embedding_as_layer + " + the loss" * parallel.loss_as_layer
    words += f" - {parallel.first_stage_layers} of the first stage" if parallel.first_stage_layers else ""
    return words + (f" - {parallel.last_stage_layers} of the last stage" if parallel.last_stage_layers else "")


def _fitting_stages(parallel: ParallelConfig, num_layers: int) -> str:
    sizes = range(2, num_layers + 3)
    fitting = [s for s in sizes if stage_layers(parallel.model_copy(update={"pipeline": s}), num_layers) is not None]
    return f"parallel.pipeline one of {fitting}" if fitting else "parallel.pipeline=1"


def _check_switches(parallel: ParallelConfig, sequence_length: int) -> Iterator[Problem]:
    ranks = parallel.tensor * parallel.context
    if parallel.sequence_parallel and sequence_length % ranks:
        yield Problem(
            path="data.sequence_length",
            got=sequence_length,
            expected=f"a multiple of tensor {parallel.tensor} x context {parallel.context} under sequence parallelism",
            remedy=f"data.sequence_length={-(-sequence_length // ranks) * ranks}, or parallel.sequence_parallel=false",
        )
    if parallel.overlap_param_gather and not (parallel.distributed_optimizer and parallel.overlap_grad_reduce):
        yield Problem(
            path="parallel.overlap_param_gather",
            got=True,
            expected="distributed_optimizer and overlap_grad_reduce to be on as well",
            remedy="parallel.distributed_optimizer=true parallel.overlap_grad_reduce=true, or remove it",
        )


def describe_layouts(config: RunConfig, world_size: int) -> Iterator[str]:
    """Descriptions of all layouts that fit a number of ranks, with the configured context and expert parallelism."""
    context, experts = config.parallel.context, config.parallel.expert
    words = f" x context {context}" if context > 1 else ""
    spread = f" (expert {experts})" if experts > 1 else ""
    for tensor in tensor_sizes(config.model):
        for pipeline in divisors(config.model.num_layers):
            model_size = tensor * pipeline * context
            layout = config.parallel.model_copy(update={"tensor": tensor})
            if world_size % model_size == 0 and world_size // pipeline % layout.expert_ranks == 0:
                yield f"tensor {tensor} x pipeline {pipeline}{words} x data {world_size // model_size}{spread}"
