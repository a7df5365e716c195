"""Checks across sections. They read and report; they never change a value."""

from megatron_ko.config.checks.adapter import check_adapter
from megatron_ko.config.checks.attention import check_attention
from megatron_ko.config.checks.layout import check_layout, describe_layouts
from megatron_ko.config.checks.length import check_data, check_lengths, check_optim, check_reference, check_validation
from megatron_ko.config.checks.memory import check_memory
from megatron_ko.config.checks.model import check_model
from megatron_ko.config.checks.moe import check_expert_ranks, check_moe
from megatron_ko.config.checks.overlap import check_overlap
from megatron_ko.config.checks.precision import check_precision
from megatron_ko.config.checks.unread import check_unread
from megatron_ko.config.problems import Problem
from megatron_ko.config.run import RunConfig


def check(config: RunConfig) -> list[Problem]:
    """All problems that can be found without knowing the number of ranks."""
    checks = (
        check_unread,
        check_model,
        check_moe,
        check_attention,
        check_layout,
        check_precision,
        check_memory,
        check_overlap,
        check_lengths,
        check_reference,
        check_validation,
        check_optim,
        check_data,
        check_adapter,
    )
    return [problem for find in checks for problem in find(config)]


def check_world(config: RunConfig, world_size: int) -> list[Problem]:
    """All problems of running on ``world_size`` ranks."""
    parallel, training = config.parallel, config.training
    if world_size % parallel.model_size:
        layouts = ", ".join(describe_layouts(config, world_size)) or "none"
        return [
            Problem(
                path="parallel",
                got=f"tensor {parallel.tensor} x pipeline {parallel.pipeline} x context {parallel.context} "
                f"on {world_size} ranks",
                expected=f"a product that divides {world_size}",
                remedy=f"layouts that fit {world_size} ranks: {layouts}; or set launch.ranks_per_node to a "
                f"multiple of {parallel.smallest_world}",
            )
        ]
    if problems := list(check_expert_ranks(config, world_size)):
        return problems
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
                got=f"{micro_batches} micro-batches per step",
                expected=f"a multiple of parallel.pipeline {parallel.pipeline} for the interleaved schedule",
                remedy=f"training.global_batch_size={portion * parallel.pipeline}",
            )
        ]
    return []
