"""One optimizer step: forward and backward over all micro-batches, one global loss, one guarded update."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from megatron.core.pipeline_parallel import get_forward_backward_func

from megatron_ko.data.training.batch import Batch
from megatron_ko.models.router import balancing_biases, restore_biases, routers_of, weigh_auxiliary_losses
from megatron_ko.models.router_stats import drain_routing_stats
from megatron_ko.models.routing import LayerRouting
from megatron_ko.train.engine import Engine
from megatron_ko.train.loss_sums import TOKENS, Pairs, Units, add_up, count_units, mean, mean_loss, weigh
from megatron_ko.train.optimizer import clip_gradients, prepare_gradients, set_learning_rate
from megatron_ko.train.state import StepResult

STOP = "stop"


def train_step(
    engine: Engine, batches: Sequence[Batch], *, lr: float, weight_decay: float, stop: Callable[[], bool] = bool
) -> StepResult:
    """Train on one global batch.

    Args:
        engine: the model to train, with its optimizer and objective.
        batches: this rank's micro-batches, each [b, s].
        lr, weight_decay: learning rate and weight decay of this step.
        stop: whether this rank was asked to stop; all ranks learn of it together with the loss.
    """
    for chunk in engine.model:
        chunk.zero_grad_buffer()
    engine.optimizer.zero_grad()
    routers = routers_of(engine.model)
    biases = balancing_biases(routers)
    units = count_units(engine, batches)
    if engine.network.moe is not None:
        weigh_auxiliary_losses(routers, _units_per_micro_batch(engine, units, len(batches)))
    observe(engine, batches, units)
    pairs = forward_backward(engine, batches, units, forward_only=False)
    queued = add_up(engine, pairs, votes={STOP: stop()})
    scale = float(engine.optimizer.get_loss_scale().item()) if engine.scales_loss else 1.0
    grad_norm = _gradient_norm(engine)  # the only time that this process waits for the device
    totals = queued.read()
    loss = mean_loss(engine, totals)
    set_learning_rate(engine.optimizer, lr, weight_decay)
    updated = grad_norm is not None and math.isfinite(grad_norm) and math.isfinite(loss) and _update(engine, grad_norm)
    if not updated:
        restore_biases(routers, biases)
    return StepResult(
        loss=loss,
        grad_norm=grad_norm,
        lr=lr,
        loss_scale=scale,
        skipped=not updated,
        trained_tokens=int(totals[TOKENS][0]),
        stop=bool(totals[STOP][0]),
        metrics={name: mean(totals[name]) for name in engine.objective.metric_names},
        routing=_routing(engine, len(batches)),
    )


def _units_per_micro_batch(engine: Engine, units: Units, micro_batches: int) -> torch.Tensor:
    """Number of units in the global batch that the loss is a mean over, per micro-batch; a scalar on the device."""
    return units[engine.objective.terms[0].unit].float() / (micro_batches * engine.groups.dp_size)


def _routing(engine: Engine, micro_batches: int) -> tuple[LayerRouting, ...]:
    """Routing statistics of all layers in this step; empty for a dense model."""
    model = engine.network
    if model.moe is None:
        return ()
    totals = {router.layer_number: router.totals for router in routers_of(engine.model)}
    return drain_routing_stats(totals, model.num_layers, model.moe, micro_batches * engine.groups.dp_size)


def _gradient_norm(engine: Engine) -> float | None:
    """Pass the gradients to the optimizer and return their global norm, equal on all ranks; None on fp16 overflow."""
    return None if prepare_gradients(engine.optimizer) else float(engine.optimizer.get_grad_norm())


def _update(engine: Engine, norm: float) -> bool:
    """Clip the gradients, which have this norm, and apply them. All ranks see the same numbers, so they agree."""
    clip_gradients(engine.optimizer, norm)
    return bool(engine.optimizer.step_with_ready_grads())


def observe(engine: Engine, batches: Sequence[Batch], units: Units) -> None:
    """Measure what the objective has to know of the whole global batch before its loss, by a forward pass."""
    observer = engine.objective.observer()
    if observer is None:
        return
    observing = replace(engine, objective=observer)
    with torch.no_grad():
        pairs = forward_backward(observing, batches, units, forward_only=True)
    totals = add_up(observing, pairs).read()
    engine.objective.observe({name: mean(totals[name]) for name in observer.metric_names})


def forward_backward(engine: Engine, batches: Sequence[Batch], units: Units, forward_only: bool) -> list[Pairs]:
    """Run megatron-core's schedule over micro-batches of equal shape [b, s] from a global batch with these ``units``.

    Returns:
        On the last pipeline stage the (sum, count) pairs of each micro-batch; elsewhere an empty list.
    """
    chunks = engine.model
    schedule = get_forward_backward_func()
    results = schedule(
        forward_step_func=partial(_forward_step, engine, units),
        data_iterator=[iter(batches) for _ in chunks],
        model=chunks,
        num_microbatches=len(batches),
        seq_length=batches[0].shape[1] * engine.groups.cp_size,  # the schedule divides by it
        micro_batch_size=batches[0].shape[0],
        forward_only=forward_only,
    )
    return list(results)


def _forward_step(
    engine: Engine, units: Units, batches: Any, model: Any, return_schedule_plan: bool = False
) -> tuple[Any, Any]:
    batch = next(batches)
    # A schedule that overlaps one micro-batch with communication of another needs the schedule plan, not the result.
    forward = model.build_schedule_plan if return_schedule_plan else model
    return engine.objective.forward(batch, forward), partial(_loss, engine, units, batch)


def _loss(engine: Engine, units: Units, batch: Batch, output: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, Pairs]:
    return weigh(engine, batch, engine.objective.loss(output, batch), units)
