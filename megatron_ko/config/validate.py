"""Checks across sections. They read and report; they never change a value."""

from collections.abc import Iterator

from megatron_ko.config.parallel import ParallelConfig
from megatron_ko.config.problems import Problem
from megatron_ko.config.run import RunConfig


def check(config: RunConfig) -> list[Problem]:
    """Every problem that can be seen without knowing the number of ranks."""
    checks = (_check_model, _check_axes, _check_lengths, _check_optim, _check_data)
    return [problem for find in checks for problem in find(config)]


def check_world(config: RunConfig, world_size: int) -> list[Problem]:
    """Every problem of running on ``world_size`` ranks."""
    parallel, training = config.parallel, config.training
    if world_size % parallel.model_size:
        layouts = ", ".join(_describe_layouts(config, world_size)) or "none"
        return [
            Problem(
                path="parallel",
                got=f"tensor {parallel.tensor} x pipeline {parallel.pipeline} x context {parallel.context} "
                f"on {world_size} ranks",
                expected=f"a product that divides {world_size}",
                remedy=f"layouts that fit {world_size} ranks: {layouts}; or set launch.ranks_per_node to a "
                f"multiple of {parallel.model_size}",
            )
        ]
    data_size = world_size // parallel.model_size
    portion = training.micro_batch_size * data_size
    if training.global_batch_size % portion:
        below = training.global_batch_size // portion * portion
        fitting = " or ".join(str(size) for size in (below, below + portion) if size)
        return [
            Problem(
                path="training.global_batch_size",
                got=training.global_batch_size,
                expected=f"a multiple of micro_batch_size {training.micro_batch_size} x {data_size} data ranks",
                remedy=f"training.global_batch_size={fitting}",
            )
        ]
    micro_batches = training.global_batch_size // portion
    if parallel.virtual_pipeline > 1 and micro_batches % parallel.pipeline:
        return [
            Problem(
                path="training.global_batch_size",
                got=f"{micro_batches} micro-batches a step",
                expected=f"a multiple of parallel.pipeline {parallel.pipeline} for the interleaved schedule",
                remedy=f"training.global_batch_size={portion * parallel.pipeline}",
            )
        ]
    return []


def _check_model(config: RunConfig) -> Iterator[Problem]:
    model = config.model
    if model.head_dim is None and model.hidden_size % model.num_attention_heads:
        yield Problem(
            path="model.num_attention_heads",
            got=model.num_attention_heads,
            expected=f"a divisor of hidden_size {model.hidden_size}",
            remedy="change it, or set model.head_dim",
        )
    if model.num_attention_heads % model.query_groups:
        yield Problem(
            path="model.num_query_groups",
            got=model.query_groups,
            expected=f"a divisor of num_attention_heads {model.num_attention_heads}",
            remedy=f"one of {_divisors(model.num_attention_heads)}",
        )
    if model.kv_channels % 2:
        yield Problem(path="model.head_dim", got=model.kv_channels, expected="an even number, for rotary positions")


def _check_axes(config: RunConfig) -> Iterator[Problem]:
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
            remedy=f"a product out of {_divisors(model.num_layers)}",
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


def _check_lengths(config: RunConfig) -> Iterator[Problem]:
    if config.data.sequence_length > config.model.max_position_embeddings:
        yield Problem(
            path="data.sequence_length",
            got=config.data.sequence_length,
            expected=f"at most model.max_position_embeddings {config.model.max_position_embeddings}",
        )


def _check_optim(config: RunConfig) -> Iterator[Problem]:
    optim, steps = config.optim, config.training.steps
    if optim.warmup_steps >= steps:
        yield Problem(path="optim.warmup_steps", got=optim.warmup_steps, expected=f"fewer than training.steps {steps}")
    if optim.decay_steps is not None and optim.schedule != "wsd":
        yield Problem(
            path="optim.decay_steps",
            got=optim.decay_steps,
            expected=f"nothing: schedule {optim.schedule} does not read it",
            remedy="optim.schedule=wsd, or remove it",
        )
    if optim.decay_steps is not None and optim.decay_steps + optim.warmup_steps > steps:
        yield Problem(
            path="optim.decay_steps",
            got=optim.decay_steps,
            expected=f"at most {steps - optim.warmup_steps}, the steps after warm-up",
        )


def _check_data(config: RunConfig) -> Iterator[Problem]:
    weights = [source.weight for source in config.data.sources]
    if any(weight is None for weight in weights) and any(weight is not None for weight in weights):
        yield Problem(path="data.sources", got=f"weights {weights}", expected="a weight for every source, or for none")
    prefixes = [source.prefix for source in config.data.sources]
    if len(set(prefixes)) < len(prefixes):
        yield Problem(
            path="data.sources",
            got=[str(p) for p in prefixes if prefixes.count(p) > 1],
            expected="every prefix once",
            remedy="raise its weight instead",
        )
    train, valid, test = config.data.split
    if min(train, valid, test) < 0 or train == 0:
        yield Problem(path="data.split", got=config.data.split, expected="weights >= 0, with a part for training")
    if config.eval.samples and not valid:
        yield Problem(
            path="data.split",
            got=config.data.split,
            expected=f"a validation part, because eval.samples is {config.eval.samples}",
            remedy="data.split=[98,2,0], or eval.samples=0",
        )


def tensor_sizes(config: RunConfig) -> list[int]:
    """Tensor-parallel sizes that divide the heads, the key/value heads and the feed-forward layer."""
    model = config.model
    return [t for t in _divisors(model.query_groups) if model.ffn_hidden_size % t == 0]


def _describe_layouts(config: RunConfig, world_size: int) -> Iterator[str]:
    for tensor in tensor_sizes(config):
        for pipeline in _divisors(config.model.num_layers):
            if world_size % (tensor * pipeline) == 0:
                yield f"tensor {tensor} x pipeline {pipeline} x data {world_size // (tensor * pipeline)}"


def _divisors(number: int) -> list[int]:
    return [d for d in range(1, number + 1) if number % d == 0]
