"""Validation: sharded over data-parallel ranks, weighted by tokens, with the same sequences under every layout."""

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from megatron_ko.config import TrainingConfig
from megatron_ko.data.training.batch import Batch, Collator
from megatron_ko.data.training.origins import MixtureDataset
from megatron_ko.objectives import LossOutput, Objective, Unit
from megatron_ko.train.engine import Engine
from megatron_ko.train.loss_sums import TOKENS, Pairs, add_up, count_units, mean, mean_loss
from megatron_ko.train.state import Evaluation
from megatron_ko.train.step import forward_backward, observe

BYTES = "bytes"


class ScoredText:
    """An ``Objective`` that also reports the bytes of the text that it scored, and the loss of every source.

    Args:
        objective: the objective that is measured.
        token_bytes: [v] bytes of text in each token.
        sources: names of the sources, by number; empty if they are not distinguished.
    """

    def __init__(self, objective: Objective[Batch], token_bytes: Tensor, sources: Sequence[str]) -> None:
        self._objective, self._token_bytes, self._sources = objective, token_bytes, sources
        self.terms = objective.terms
        self.metric_names = (*objective.metric_names, BYTES, *map(self.metric_of, sources))
        self.forward, self.count = objective.forward, objective.count
        self.observer, self.observe = objective.observer, objective.observe

    @staticmethod
    def metric_of(source: str) -> str:
        """The name of a source's loss in the metrics."""
        return f"loss/{source}"

    def loss(self, output: Tensor, batch: Batch) -> LossOutput:
        """The loss of all rows [b, s]; in ``metrics`` the bytes of the scored labels, and each source's rows."""
        found, first = self._objective.loss(output, batch), self.terms[0]
        scored = (self._token_bytes[batch.labels] * batch.loss_mask).sum()
        metrics = {**found.metrics, BYTES: (scored, scored)}
        numbers = torch.tensor(batch.sources, device=output.device)  # [b]
        for number, name in enumerate(self._sources):
            rows = batch.keep_rows(numbers == number)
            part = self._objective.loss(output, rows).sums[first.name]
            metrics[self.metric_of(name)] = part.detach(), self.count(rows)[first.unit]
        return replace(found, metrics=metrics)


class Evaluator:
    """Mean loss of validation sequences, in total and by source.

    Args:
        engine: the engine with the model and its objective.
        data: validation sequences, the same on every rank; the first ``samples`` are used.
        samples: maximum number of sequences.
        training: sizes of micro-batch and batch, which keep the pipeline as full as in training.
        collate: makes a batch from sequences.
        token_bytes: [v] bytes of text in each token.
    """

    def __init__(
        self,
        engine: Engine,
        data: MixtureDataset,
        samples: int,
        training: TrainingConfig,
        collate: Collator,
        token_bytes: Tensor,
    ) -> None:
        self._sources = data.sources if len(data.sources) > 1 else ()
        objective = ScoredText(engine.objective, token_bytes.to(engine.device), self._sources)
        self._engine, self._told = replace(engine, objective=objective), engine.objective.metric_names
        self._data, self._samples = data, min(samples, len(data))
        self._micro, self._global, self._collate = training.micro_batch_size, training.global_batch_size, collate

    def evaluate(self) -> Evaluation:
        """Validate the current weights. Changes neither weights nor RNG. A collective: every rank must call it.

        If there is less than one micro-batch per rank, the rest is padded with masked sequences, so that all ranks and
        pipeline stages run the same shapes and nothing is counted twice.
        """
        started = time.perf_counter()
        for chunk in self._engine.model:
            chunk.eval()
        with torch.no_grad():
            parts = [self._score(part) for part in self._portions()]
        for chunk in self._engine.model:
            chunk.train()
        totals = add_up(self._engine, [pairs for part in parts for pairs in part]).read()
        loss, tokens = mean_loss(self._engine, totals), int(totals[TOKENS][0])
        text_bytes = totals[BYTES][0]
        per_byte = totals["nll"][0] / math.log(2) / text_bytes if text_bytes and "nll" in totals else None
        pairs = {name: totals[ScoredText.metric_of(name)] for name in self._sources}
        by_source = {name: mean(pair) if pair[1] else None for name, pair in pairs.items()}
        metrics = {name: mean(totals[name]) for name in self._told}
        seconds = time.perf_counter() - started
        return Evaluation(loss, self._perplexity(loss), per_byte, self._samples, tokens, seconds, metrics, by_source)

    def _perplexity(self, loss: float) -> float | None:
        """None for a loss that is no mean over tokens."""
        if self._engine.objective.terms[0].unit is not Unit.TOKEN:
            return None
        return math.exp(loss) if loss < 700 else math.inf

    def _score(self, batches: Sequence[Batch]) -> list[Pairs]:
        units = count_units(self._engine, batches)
        observe(self._engine, batches, units)
        return forward_backward(self._engine, batches, units, forward_only=True)

    def _portions(self) -> Iterator[list[Batch]]:
        """This rank's micro-batches, in groups of the size of a training step."""
        groups = self._engine.groups
        across = self._micro * groups.dp_size
        per_step = self._global // across
        rounds = -(-self._samples // across)
        if groups.vp_size > 1:  # the interleaved schedule needs a multiple of the number of stages
            rounds = -(-rounds // groups.pp_size) * groups.pp_size
        for start in range(0, rounds, per_step):
            numbers = range(start, min(start + per_step, rounds))
            yield [self._batch(number * across + groups.dp_rank * self._micro) for number in numbers]

    def _batch(self, first: int) -> Batch:
        """Validation sequences [b, s] from ``first`` on; after the last one, fully masked padding."""
        indices = range(first, first + self._micro)
        filled = [min(index, self._samples - 1) for index in indices]
        sources = tuple(self._data.source_numbers(filled).tolist())
        kept = torch.tensor([index < self._samples for index in indices])
        batch = replace(self._collate(self._data, filled), sources=sources).keep_rows(kept)
        return batch.to(self._engine.device)
