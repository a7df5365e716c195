"""One optimizer step: forward and backward over all micro-batches, one global loss, one guarded update."""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from megatron.core.pipeline_parallel import get_forward_backward_func

from megatron_ko.data.pretrain import TokenBatch
from megatron_ko.models.router import balancing_biases, restore_biases, routers_of, weigh_auxiliary_losses
from megatron_ko.models.router_stats import take_routing
from megatron_ko.models.routing import LayerRouting
from megatron_ko.objectives import Objective
from megatron_ko.parallel.collectives import all_reduce_sum
from megatron_ko.train.optimizer import clip_gradients, prepare_gradients, set_learning_rate
from megatron_ko.train.run import Run
from megatron_ko.train.schedule import lr_at
from megatron_ko.train.state import StepResult

Sums = dict[str, tuple[torch.Tensor, torch.Tensor]]
LOSS = "loss"


def train_step(run: Run, batch: Sequence[TokenBatch]) -> StepResult:
    """Train on one global batch.

    Args:
        run: model, optimizer and progress.
        batch: this rank's micro-batches, each [b, s].
    """
    for chunk in run.model:
        chunk.zero_grad_buffer()
    run.optimizer.zero_grad()
    routers = routers_of(run.model)
    biases = balancing_biases(routers)
    if run.config.model.moe is not None:
        weigh_auxiliary_losses(routers, _tokens_per_micro_batch(run, batch))
    totals = add_up(run, forward_backward(run, batch, forward_only=False))
    means = {name: total / count if count else math.nan for name, (total, count) in totals.items()}
    loss = means.pop(LOSS)
    lr = lr_at(run.state.step, run.config.optim, run.config.training.steps)
    set_learning_rate(run.optimizer, lr, run.config.optim.weight_decay)
    scale = float(run.optimizer.get_loss_scale().item()) if run.config.precision.dtype == "fp16" else 1.0
    updated, grad_norm = _update(run, loss)
    if not updated:
        restore_biases(routers, biases)
    return StepResult(loss, grad_norm, lr, scale, not updated, means, _routing(run, len(batch)))


def _tokens_per_micro_batch(run: Run, batch: Sequence[TokenBatch]) -> torch.Tensor:
    """Counted tokens of the global batch, divided by its micro-batches; a scalar on the device."""
    counts = torch.stack([run.objective.count(micro_batch) for micro_batch in batch]).sum().float()
    return all_reduce_sum(counts, run.groups.pg.dp_cp) / (len(batch) * run.groups.dp_size)


def _routing(run: Run, micro_batches: int) -> tuple[LayerRouting, ...]:
    """What the routers of all layers did in this step; nothing in a dense model."""
    model = run.config.model
    if model.moe is None:
        return ()
    totals = {router.layer_number: router.totals for router in routers_of(run.model)}
    return take_routing(totals, model.num_layers, model.moe, micro_batches * run.groups.dp_size)


def _update(run: Run, loss: float) -> tuple[bool, float | None]:
    """Apply the gradients unless they or the loss are not finite. All ranks see the same numbers, so all agree."""
    if prepare_gradients(run.optimizer):
        return False, None
    norm = float(run.optimizer.get_grad_norm())
    if not (math.isfinite(norm) and math.isfinite(loss)):
        return False, norm
    clip_gradients(run.optimizer, norm)
    return bool(run.optimizer.step_with_ready_grads()), norm


def forward_backward(run: Run, batch: Sequence[TokenBatch], forward_only: bool) -> list[Sums]:
    """Run megatron-core's schedule over micro-batches of equal shape [b, s].

    Returns:
        On the last pipeline stage the (sum, count) pairs of each micro-batch; elsewhere an empty list.
    """
    chunks = run.model
    schedule = get_forward_backward_func()
    results = schedule(
        forward_step_func=partial(_forward_step, run.objective),
        data_iterator=[iter(batch) for _ in chunks],
        model=chunks,
        num_microbatches=len(batch),
        seq_length=batch[0].tokens.shape[1] * run.groups.cp_size,  # the schedule divides by it
        micro_batch_size=batch[0].tokens.shape[0],
        forward_only=forward_only,
    )
    return list(results)


def _forward_step(
    objective: Objective[TokenBatch], batches: Any, model: Any, return_schedule_plan: bool = False
) -> tuple[Any, Any]:
    batch = next(batches)
    # A schedule that computes one micro-batch while another one's tokens travel asks for the steps, not for the result.
    forward = model.build_schedule_plan if return_schedule_plan else model
    return objective.forward(batch, forward), partial(_loss_for_schedule, objective, batch)


def _loss_for_schedule(
    objective: Objective[TokenBatch], batch: TokenBatch, output: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, Sums]:
    result = objective.loss(output, batch)
    # The schedule may scale what it backpropagates in place: the reported sum is a copy.
    reported = {LOSS: (result.loss_sum.detach().clone(), result.count), **result.metrics}
    return result.loss_sum, result.count, reported


def add_up(run: Run, sums: Sequence[Sums]) -> dict[str, tuple[float, float]]:
    """Add (sum, count) pairs in float64 over micro-batches and then over all ranks, in one collective.

    Only the last pipeline stage has pairs, and all its tensor-parallel ranks have the same ones: the first one counts.
    """
    names = (LOSS, *run.objective.metric_names)
    groups = run.groups
    totals = torch.zeros(len(names), 2, dtype=torch.float64, device=run.device)
    if groups.is_last_stage and groups.tp_rank == 0:
        for pairs in sums:
            totals += torch.stack([torch.stack([part.double() for part in pairs[name]]) for name in names])
    torch.distributed.all_reduce(totals)
    return {name: (total, count) for name, (total, count) in zip(names, totals.tolist(), strict=True)}
