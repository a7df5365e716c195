"""Computes the loss of the global batch from the sums of micro-batches: counting, weighting, adding and dividing."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from megatron_ko.data.training.batch import Batch
from megatron_ko.objectives import LossOutput, Unit
from megatron_ko.parallel.collectives import all_reduce_sum
from megatron_ko.train.engine import Engine

Pairs = dict[str, tuple[torch.Tensor, torch.Tensor]]
Units = Mapping[Unit, torch.Tensor]
TOKENS = "trained_tokens"


def count_units(engine: Engine, batches: Sequence[Batch]) -> Units:
    """Number of units of each kind in the global batch: int64 scalars on the device, the same on every rank."""
    found = [_counts(engine, batch) for batch in batches]
    kinds = list(found[0])
    sums = torch.stack([torch.stack([counts[unit] for counts in found]).sum() for unit in kinds])
    return dict(zip(kinds, all_reduce_sum(sums, engine.groups.pg.dp_cp).unbind(), strict=True))


def _counts(engine: Engine, batch: Batch) -> Units:
    """This rank's part of the counts; units shared by context ranks are counted by one of them."""
    return {unit: _counted_once(engine, unit, n) for unit, n in engine.objective.count(batch).items()}


def _counted_once(engine: Engine, unit: Unit, value: torch.Tensor) -> torch.Tensor:
    """A sum over units on the rank that counts them; 0 on the other ranks of its context group that share them."""
    return value * 0 if unit.shared_by_context_ranks and engine.groups.cp_rank > 0 else value


def weigh(engine: Engine, batch: Batch, found: LossOutput, units: Units) -> tuple[torch.Tensor, torch.Tensor, Pairs]:
    """Loss and count of a micro-batch for megatron-core's schedule, which divides all gradients by the sum of counts.

    Terms with another unit than the first one are therefore converted: times the count of the first, divided by theirs.

    Returns:
        Sum with its graph, count, and (sum, count) pairs to report: of terms, metrics and the trained tokens.
    """
    terms, counts = engine.objective.terms, _counts(engine, batch)
    first = terms[0].unit
    parts, reported = [], {}
    for term in terms:
        total = found.sums[term.name]
        factor = term.weight if term.unit is first else term.weight * units[first] / units[term.unit].clamp(min=1)
        parts.append(total * factor)
        # The schedule may scale the loss in place, so the reported sum is a copy.
        reported[term.name] = (_counted_once(engine, term.unit, total.detach().clone()), counts[term.unit])
    tokens = counts[Unit.TOKEN]
    return sum(parts[1:], parts[0]), counts[first], {**reported, **found.metrics, TOKENS: (tokens, tokens)}


@dataclass(frozen=True)
class Totals:
    """Sums over all ranks, still queued on the device.

    Attributes:
        names: names of the quantities.
        pairs: [n, 2] float64, sum and count of each.
    """

    names: tuple[str, ...]
    pairs: torch.Tensor

    def read(self) -> dict[str, tuple[float, float]]:
        """Wait for them: (sum, count) by name."""
        return {name: (total, count) for name, (total, count) in zip(self.names, self.pairs.tolist(), strict=True)}


def add_up(engine: Engine, pairs: Sequence[Pairs], votes: Mapping[str, bool] | None = None) -> Totals:
    """Add (sum, count) pairs in float64 over micro-batches and then over all ranks, in one collective.

    Only the last pipeline stage has pairs. All its tensor-parallel ranks have the same ones; only the first one counts.

    Args:
        engine: its objective defines the names of the pairs.
        pairs: the pairs of each micro-batch.
        votes: yes or no of this rank by name; the resulting pair is (number of ranks that say yes, 0).
    """
    objective, groups, asked = engine.objective, engine.groups, dict(votes or {})
    names = (*(term.name for term in objective.terms), *objective.metric_names, TOKENS)
    totals = torch.zeros(len(names) + len(asked), 2, dtype=torch.float64, device=engine.device)
    if groups.is_last_stage and groups.tp_rank == 0:
        for found in pairs:
            rows = [torch.stack([part.double() for part in found[name]]) for name in names]
            totals[: len(names)] += torch.stack(rows)
    totals[len(names) :, 0] = torch.tensor([float(vote) for vote in asked.values()])
    torch.distributed.all_reduce(totals)
    return Totals((*names, *asked), totals)


def mean_loss(engine: Engine, totals: Mapping[str, tuple[float, float]]) -> float:
    """The loss: the weighted sum of the means of its terms; NaN if nothing was counted."""
    return sum(term.weight * mean(totals[term.name]) for term in engine.objective.terms)


def mean(pair: tuple[float, float]) -> float:
    """Sum divided by count; NaN if nothing was counted."""
    total, count = pair
    return total / count if count else math.nan
