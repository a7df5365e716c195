"""Checks whether experts fit the network, the router and the layout."""

from collections.abc import Iterator

from megatron_ko.config.checks.divisors import divisors
from megatron_ko.config.moe import MoeConfig
from megatron_ko.config.problems import Problem
from megatron_ko.config.run import RunConfig


def check_moe(config: RunConfig) -> Iterator[Problem]:
    """Experts and the ranks that share them; the router is checked with the network (``check_router``)."""
    moe, parallel = config.model.moe, config.parallel
    if moe is None:
        return
    if moe.num_experts % parallel.expert:
        yield Problem(
            path="parallel.expert",
            got=parallel.expert,
            expected=f"a divisor of model.moe.num_experts {moe.num_experts}",
            remedy=f"one of {divisors(moe.num_experts)}",
        )
    if parallel.tensor > 1 and not parallel.sequence_parallel:
        yield Problem(
            path="parallel.sequence_parallel",
            got=False,
            expected="true for experts with tensor parallelism: otherwise every rank would route every token",
            remedy="parallel.sequence_parallel=true",
        )
    if parallel.dispatcher == "flex" and parallel.expert_ranks == 1:
        yield Problem(
            path="parallel.dispatcher",
            got="flex",
            expected="experts that are spread over ranks: parallel.expert or parallel.expert_tensor above 1",
            remedy="parallel.dispatcher=alltoall",
        )


def check_router(moe: MoeConfig) -> Iterator[Problem]:
    """Check that the router can choose among the experts and learn."""
    if moe.top_k > moe.num_experts:
        yield Problem(
            path="model.moe.top_k",
            got=moe.top_k,
            expected=f"at most num_experts {moe.num_experts}",
            remedy=f"model.moe.top_k={min(2, moe.num_experts)}",
        )
    if moe.score == "softmax" and moe.top_k == 1 and not moe.softmax_before_topk:
        yield Problem(
            path="model.moe.softmax_before_topk",
            got=False,
            expected="true with top_k 1: the softmax over one chosen expert is always 1, so the router cannot learn",
            remedy="model.moe.softmax_before_topk=true",
        )
    if moe.score == "sigmoid" and moe.softmax_before_topk:
        yield Problem(
            path="model.moe.softmax_before_topk",
            got=True,
            expected="false with score sigmoid, which has no softmax",
            remedy="remove it, or model.moe.score=softmax",
        )
    if moe.expert_bias and moe.score != "sigmoid":
        yield Problem(
            path="model.moe.expert_bias",
            got=True,
            expected="score sigmoid: the bias is added to scores between 0 and 1",
            remedy="model.moe.score=sigmoid, or balance with model.moe.aux_loss",
        )


def check_expert_ranks(config: RunConfig, world_size: int) -> Iterator[Problem]:
    """Check that the experts divide the ranks of a pipeline stage; the other axes have been checked already."""
    parallel, moe = config.parallel, config.model.moe
    stage = world_size // parallel.pipeline
    if moe is None or stage % parallel.expert_ranks == 0:
        return
    sizes = [size for size in divisors(moe.num_experts) if stage % (size * parallel.expert_tensor_size) == 0]
    needed = parallel.pipeline * parallel.expert_ranks
    yield Problem(
        path="parallel.expert",
        got=f"expert {parallel.expert} x expert_tensor {parallel.expert_tensor_size}",
        expected=f"a product that divides the {stage} ranks of a pipeline stage "
        f"({world_size} ranks, pipeline {parallel.pipeline})",
        remedy=f"parallel.expert one of {sizes}"
        if sizes
        else f"parallel.expert_tensor=1, or a multiple of {needed} ranks",
    )
