"""Validation: sharded over data-parallel ranks, weighted by tokens, on the same sequences for every layout."""

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from megatron_ko.data.origins import Samples
from megatron_ko.data.pretrain import TokenBatch
from megatron_ko.objectives import LossOutput, Objective
from megatron_ko.train.run import Run
from megatron_ko.train.state import Evaluation
from megatron_ko.train.step import LOSS, add_up, forward_backward


class BySource:
    """An objective that tells the loss of every source beside that of all; see ``Objective``.

    Args:
        objective: what is measured.
        sources: names of the sources, by number.
    """

    def __init__(self, objective: Objective[TokenBatch], sources: Sequence[str]) -> None:
        self._objective, self._sources = objective, sources
        self.metric_names = (*objective.metric_names, *map(self.metric_of, sources))
        self.forward, self.count = objective.forward, objective.count

    @staticmethod
    def metric_of(source: str) -> str:
        """The name of a source's loss among the metrics."""
        return f"{LOSS}/{source}"

    def loss(self, output: Tensor, batch: TokenBatch) -> LossOutput:
        """The loss of all rows [b, s], and of each source's rows in ``metrics``."""
        found = self._objective.loss(output, batch)
        numbers = torch.tensor(batch.sources, device=output.device)[:, None]  # [b, 1]
        metrics = dict(found.metrics)
        for number, name in enumerate(self._sources):
            rows = replace(batch, loss_mask=batch.loss_mask * (numbers == number))
            part = self._objective.loss(output, rows)
            metrics[self.metric_of(name)] = part.loss_sum.detach(), part.count
        return replace(found, metrics=metrics)


def evaluate(run: Run) -> Evaluation:
    """Mean loss of the first ``eval.samples`` validation sequences, in all and by source.

    Changes neither weights nor RNG.

    Every rank must call it. A part that is smaller than one micro-batch per rank is filled up with masked sequences, so
    that all ranks and pipeline stages run the same shapes and nothing is counted twice.
    """
    started = time.perf_counter()
    data = run.valid_data
    assert data is not None, "the loop validates only where there is validation data"
    samples = min(run.config.eval.samples, len(data))
    several = data.sources if len(data.sources) > 1 else ()
    if several:
        run = replace(run, objective=BySource(run.objective, several))
    for chunk in run.model:
        chunk.eval()
    with torch.no_grad():
        parts = [forward_backward(run, part, forward_only=True) for part in _portions(run, data, samples)]
    for chunk in run.model:
        chunk.train()
    totals = add_up(run, [pairs for part in parts for pairs in part])
    total, count = totals[LOSS]
    loss = total / count if count else math.nan
    per_byte = loss / math.log(2) / run.bytes_per_token if run.bytes_per_token else None
    parts_of = {name: totals[BySource.metric_of(name)] for name in several}
    by_source = {name: part / counted if counted else None for name, (part, counted) in parts_of.items()}
    return Evaluation(loss, per_byte, samples, int(count), time.perf_counter() - started, by_source)


def _portions(run: Run, data: Samples, samples: int) -> Iterator[list[TokenBatch]]:
    """This rank's micro-batches in groups as large as a training step, which keeps the pipeline equally full."""
    training, groups = run.config.training, run.groups
    across = training.micro_batch_size * groups.dp_size
    per_step = training.global_batch_size // across
    rounds = -(-samples // across)
    if groups.vp_size > 1:  # the interleaved schedule takes micro-batches in multiples of the stages
        rounds = -(-rounds // groups.pp_size) * groups.pp_size
    for start in range(0, rounds, per_step):
        numbers = range(start, min(start + per_step, rounds))
        offset = groups.dp_rank * training.micro_batch_size
        yield [_batch(run, data, number * across + offset, samples) for number in numbers]


def _batch(run: Run, data: Samples, first: int, samples: int) -> TokenBatch:
    """Validation sequences [b, s] from ``first`` on; those from ``samples`` on are filling and fully masked."""
    indices = range(first, first + run.config.training.micro_batch_size)
    filled = [min(index, samples - 1) for index in indices]
    batch = replace(run.batches.collate(data, filled), sources=tuple(data.source_numbers(filled).tolist()))
    for row, index in enumerate(indices):
        if index >= samples:
            batch.loss_mask[row] = 0.0
    return batch
