"""One optimizer step: forward and backward over all micro-batches, one global loss, one guarded update."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from megatron.core.pipeline_parallel import get_forward_backward_func

from megatron_ko.data.training.batch import Batch
from megatron_ko.models.router import balancing_biases, restore_biases, routers_of, weigh_auxiliary_losses
from megatron_ko.models.router_stats import drain_routing_stats
from megatron_ko.models.routing import LayerRouting
from megatron_ko.objectives import Objective
from megatron_ko.parallel.collectives import all_reduce_sum
from megatron_ko.train.engine import Engine
from megatron_ko.train.optimizer import clip_gradients, prepare_gradients, set_learning_rate
from megatron_ko.train.state import StepResult

Sums = dict[str, tuple[torch.Tensor, torch.Tensor]]
LOSS, STOP = "loss", "stop"


def train_step(
    engine: Engine, batches: Sequence[Batch], *, lr: float, weight_decay: float, stop: Callable[[], bool] = bool
) -> StepResult:
    """Train on one global batch.

    Args:
        engine: what is trained.
        batches: this rank's micro-batches, each [b, s].
        lr, weight_decay: of this step.
        stop: tells whether this rank was asked to stop; all ranks learn of it with the loss.
    """
    for chunk in engine.model:
        chunk.zero_grad_buffer()
    engine.optimizer.zero_grad()
    routers = routers_of(engine.model)
    biases = balancing_biases(routers)
    if engine.network.moe is not None:
        weigh_auxiliary_losses(routers, _tokens_per_micro_batch(engine, batches))
    sums = forward_backward(engine, batches, forward_only=False)
    queued = add_up(engine, sums, votes={STOP: stop()})
    scale = float(engine.optimizer.get_loss_scale().item()) if engine.scales_loss else 1.0
    grad_norm = _gradient_norm(engine)  # the one time that this process waits for the device
    totals = queued.read()
    asked, count = bool(totals.pop(STOP)[0]), totals[LOSS][1]
    means = {name: total / counted if counted else math.nan for name, (total, counted) in totals.items()}
    loss = means.pop(LOSS)
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
        trained_tokens=int(count),
        stop=asked,
        metrics=means,
        routing=_routing(engine, len(batches)),
    )


def _tokens_per_micro_batch(engine: Engine, batches: Sequence[Batch]) -> torch.Tensor:
    """Counted tokens of the global batch, divided by its micro-batches; a scalar on the device."""
    counts = torch.stack([engine.objective.count(batch) for batch in batches]).sum().float()
    return all_reduce_sum(counts, engine.groups.pg.dp_cp) / (len(batches) * engine.groups.dp_size)


def _routing(engine: Engine, micro_batches: int) -> tuple[LayerRouting, ...]:
    """What the routers of all layers did in this step; nothing in a dense model."""
    model = engine.network
    if model.moe is None:
        return ()
    totals = {router.layer_number: router.totals for router in routers_of(engine.model)}
    return drain_routing_stats(totals, model.num_layers, model.moe, micro_batches * engine.groups.dp_size)


def _gradient_norm(engine: Engine) -> float | None:
    """Hand the gradients to the optimizer; their global norm, the same on every rank, or None if fp16 overflowed."""
    return None if prepare_gradients(engine.optimizer) else float(engine.optimizer.get_grad_norm())


def _update(engine: Engine, norm: float) -> bool:
    """Clip the gradients, whose norm this is, and apply them. All ranks see the same numbers, so all agree."""
    clip_gradients(engine.optimizer, norm)
    return bool(engine.optimizer.step_with_ready_grads())


def forward_backward(engine: Engine, batches: Sequence[Batch], forward_only: bool) -> list[Sums]:
    """Run megatron-core's schedule over micro-batches of equal shape [b, s].

    Returns:
        On the last pipeline stage the (sum, count) pairs of each micro-batch; elsewhere an empty list.
    """
    chunks = engine.model
    schedule = get_forward_backward_func()
    results = schedule(
        forward_step_func=partial(_forward_step, engine.objective),
        data_iterator=[iter(batches) for _ in chunks],
        model=chunks,
        num_microbatches=len(batches),
        seq_length=batches[0].shape[1] * engine.groups.cp_size,  # the schedule divides by it
        micro_batch_size=batches[0].shape[0],
        forward_only=forward_only,
    )
    return list(results)


def _forward_step(
    objective: Objective[Batch], batches: Any, model: Any, return_schedule_plan: bool = False
) -> tuple[Any, Any]:
    batch = next(batches)
    # A schedule that computes one micro-batch while another one's tokens travel asks for the steps, not for the result.
    forward = model.build_schedule_plan if return_schedule_plan else model
    return objective.forward(batch, forward), partial(_loss_for_schedule, objective, batch)


def _loss_for_schedule(
    objective: Objective[Batch], batch: Batch, output: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, Sums]:
    result = objective.loss(output, batch)
    # The schedule may scale what it backpropagates in place: the reported sum is a copy.
    reported = {LOSS: (result.loss_sum.detach().clone(), result.count), **result.metrics}
    return result.loss_sum, result.count, reported


@dataclass(frozen=True)
class Totals:
    """Sums over all ranks that are queued on the device.

    Attributes:
        names: what they are of.
        pairs: [n, 2] float64, sum and count of each.
    """

    names: tuple[str, ...]
    pairs: torch.Tensor

    def read(self) -> dict[str, tuple[float, float]]:
        """Wait for them: (sum, count) by name."""
        return {name: (total, count) for name, (total, count) in zip(self.names, self.pairs.tolist(), strict=True)}


def add_up(engine: Engine, sums: Sequence[Sums], votes: Mapping[str, bool] | None = None) -> Totals:
    """Add (sum, count) pairs in float64 over micro-batches and then over all ranks, in one collective.

    Only the last pipeline stage has pairs, and all its tensor-parallel ranks have the same ones: the first one counts.

    Args:
        engine: whose objective names the pairs.
        sums: the pairs of each micro-batch.
        votes: yes or no of this rank by name; their pair is (number of ranks that say yes, 0).
    """
    names, asked = (LOSS, *engine.objective.metric_names), dict(votes or {})
    groups = engine.groups
    totals = torch.zeros(len(names) + len(asked), 2, dtype=torch.float64, device=engine.device)
    if groups.is_last_stage and groups.tp_rank == 0:
        for pairs in sums:
            rows = [torch.stack([part.double() for part in pairs[name]]) for name in names]
            totals[: len(names)] += torch.stack(rows)
    totals[len(names) :, 0] = torch.tensor([float(vote) for vote in asked.values()])
    torch.distributed.all_reduce(totals)
    return Totals((*names, *asked), totals)
