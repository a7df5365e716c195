"""The summary printed before step 0, and by ``train --dry-run``. Needs no torch."""

from collections.abc import Mapping

from megatron_ko.config import RunConfig
from megatron_ko.plan.flops import CONVENTION, flops_per_token
from megatron_ko.plan.params import count_parameters, padding_parameters, trained_parameters
from megatron_ko.train.console import short
from megatron_ko.train.schedule import describe


def tokens_per_step(config: RunConfig) -> int:
    """Tokens of one optimizer step over all ranks."""
    return config.training.global_batch_size * config.data.sequence_length


def describe_sources(tokens: Mapping[str, int]) -> str:
    """How much was read of each source."""
    total = sum(tokens.values())
    told = (f"{name} {count:,} tokens ({count / total:.1%})" for name, count in tokens.items())
    return f"read        {', '.join(told)}"


def summarise(config: RunConfig, world_size: int) -> list[str]:
    """Lines with layout, batch, length, parameters and schedule."""
    parallel, training = config.parallel, config.training
    data = world_size // parallel.model_size
    accumulation = training.global_batch_size // (training.micro_batch_size * data)
    context = f"context {parallel.context} x " if parallel.context > 1 else ""
    axes = f"tensor {parallel.tensor} x {context}pipeline {parallel.pipeline} x data {data}"
    extras = [f"experts over {parallel.expert} of them"] if parallel.expert > 1 else []
    extras += [f"{parallel.virtual_pipeline} chunks a stage"] if parallel.virtual_pipeline > 1 else []
    extras += ["sequence parallel"] if parallel.sequence_parallel else []
    extras += ["distributed optimizer"] if parallel.distributed_optimizer else []
    parameters = count_parameters(config.model)
    active = f", {parameters.active:,} of them for a token" if parameters.active < parameters.total else ""
    per_step, flops = tokens_per_step(config), flops_per_token(config.model, config.data.sequence_length)
    total = per_step * training.steps
    return [
        f"layout      {axes} = {world_size} ranks" + (f" ({', '.join(extras)})" if extras else ""),
        f"batch       {training.global_batch_size} sequences = {training.micro_batch_size} micro x {data} data x "
        f"{accumulation} accumulation; {config.data.sequence_length} tokens each",
        f"tokens      {per_step:,} a step, {total:,} ({short(total)}) in {training.steps:,} steps",
        f"parameters  {parameters.total:,} ({short(parameters.total)}){active}, and "
        f"{padding_parameters(config.model, parallel.tensor):,} in vocabulary padding",
        *_adapters(config),
        f"schedule    {describe(config.optim, training.steps)}",
        f"compute     {short(flops)} FLOP a token, {flops * total:.2e} in all ({CONVENTION})",
        f"precision   {config.precision.summary}, fp32 master weights, recompute {training.recompute}",
    ]


def _adapters(config: RunConfig) -> list[str]:
    adapter = config.adapter
    if adapter is None:
        return []
    count, whole = trained_parameters(config), count_parameters(config.model).total
    where = ", ".join(adapter.targets)
    return [
        f"adapters    {adapter.kind} of rank {adapter.rank}, alpha {adapter.alpha:g}, at {where}: {count:,} parameters "
        f"({count / whole:.2%}) are trained"
    ]
