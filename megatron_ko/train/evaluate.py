"""Validation: sharded over data-parallel ranks, weighted by tokens, on the same sequences for every layout."""

import math
import time
from collections.abc import Iterator

import torch

from megatron_ko.data.pretrain import SampleDataset, TokenBatch
from megatron_ko.train.run import Run
from megatron_ko.train.state import Evaluation
from megatron_ko.train.step import LOSS, add_up, forward_backward


def evaluate(run: Run) -> Evaluation:
    """Mean loss of the first ``eval.samples`` validation sequences. Changes neither weights nor RNG.

    Every rank must call it. A part that is smaller than one micro-batch per rank is filled up with masked sequences, so
    that all ranks and pipeline stages run the same shapes and nothing is counted twice.
    """
    started = time.perf_counter()
    assert run.valid_data is not None, "the loop validates only where there is validation data"
    samples = min(run.config.eval.samples, len(run.valid_data))
    for chunk in run.model:
        chunk.eval()
    with torch.no_grad():
        parts = [forward_backward(run, part, forward_only=True) for part in _portions(run, run.valid_data, samples)]
    for chunk in run.model:
        chunk.train()
    total, count = add_up(run, [pairs for part in parts for pairs in part])[LOSS]
    loss = total / count if count else math.nan
    per_byte = loss / math.log(2) / run.bytes_per_token if run.bytes_per_token else None
    return Evaluation(loss, per_byte, samples, int(count), time.perf_counter() - started)


def _portions(run: Run, data: SampleDataset, samples: int) -> Iterator[list[TokenBatch]]:
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


def _batch(run: Run, data: SampleDataset, first: int, samples: int) -> TokenBatch:
    """Validation sequences [b, s] from ``first`` on; those from ``samples`` on are filling and fully masked."""
    indices = range(first, first + run.config.training.micro_batch_size)
    batch = run.batches.collate(data, [min(index, samples - 1) for index in indices])
    for row, index in enumerate(indices):
        if index >= samples:
            batch.loss_mask[row] = 0.0
    return batch
