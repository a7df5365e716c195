"""What a run reads, step after step, from any point on; and reading ahead while a step is computed.

Where the data goes on is a state of its own (``Position``): plain values that a checkpoint keeps and only the feed that
wrote them reads.
"""

from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Protocol, Self

import torch

from megatron_ko.data.training.batch import Batch, Collator
from megatron_ko.data.training.origins import MixtureDataset, Reading

Position = Mapping[str, Any]
_PLAIN, _NOTHING = Collator(), Reading()


@dataclass(frozen=True)
class StepData:
    """What one step reads.

    Attributes:
        batches: the micro-batches of this rank, of one shape.
        samples: sequences over all ranks.
        by_source: their trained tokens by the source that they come from.
        position: where the data goes on after this step.
    """

    batches: tuple[Batch, ...]
    samples: int
    by_source: dict[str, int]
    position: Position

    def to(self, device: torch.device) -> Self:
        """The same with its batches on a device."""
        return replace(self, batches=tuple(batch.to(device) for batch in self.batches))

    def pinned(self) -> Self:
        """The same with its batches in pinned host memory."""
        return replace(self, batches=tuple(batch.pinned() for batch in self.batches))


class Feed(Protocol):
    """A source of steps."""

    def next(self) -> StepData:
        """Read the next step."""
        ...


class SampleFeed:
    """The micro-batches of one data-parallel rank.

    Micro-batch m of rank r holds the samples consumed + m * micro * dp_size + r * micro + [0, micro): a step reads the
    same samples at every data-parallel size.

    Args:
        dataset: the samples.
        before: what all ranks together have read already.
        global_batch: samples of a step, over all ranks.
        micro_batch: samples of a micro-batch.
        dp_rank, dp_size: place in the data-parallel group.
        collate: makes a batch of samples.
    """

    def __init__(
        self,
        dataset: MixtureDataset,
        *,
        before: Reading = _NOTHING,
        global_batch: int,
        micro_batch: int,
        dp_rank: int,
        dp_size: int,
        collate: Collator = _PLAIN,
    ) -> None:
        assert global_batch % (micro_batch * dp_size) == 0, "checked with the configuration"
        self._dataset, self._collate = dataset, collate
        self._global, self._micro, self._rank, self._size = global_batch, micro_batch, dp_rank, dp_size
        self.consumed_samples, self._read = before.samples, dict(before.by_dataset)

    def indices(self) -> list[range]:
        """Sample numbers of the next step, one range a micro-batch."""
        across = self._micro * self._size
        first = self.consumed_samples + self._rank * self._micro
        return [range(start, start + self._micro) for start in range(first, first + self._global, across)]

    def next(self) -> StepData:
        """Read the next step."""
        first, after = self.consumed_samples, self.consumed_samples + self._global
        batches = tuple(self._collate(self._dataset, indices) for indices in self.indices())
        self.consumed_samples = after
        length = batches[0].shape[1] * self._collate.cp_size
        tokens = self._dataset.tokens_by_source(range(first, after), length)
        for key, count in self._dataset.count_by_dataset(range(first, after)).items():
            self._read[key] = self._read.get(key, 0) + count
        return StepData(batches, self._global, tokens, {"samples": after, "read": dict(self._read)})

    def __iter__(self) -> Iterator[StepData]:
        return self

    __next__ = next


class ReadAhead:
    """Reads the next step in a thread while the present one is computed, so that a step does not wait for the disk.

    Args:
        feed: what is read; nobody else may read it from now on.
        device: where batches go.
        steps: how many are wanted; none is read beyond the last one.
    """

    def __init__(self, feed: Feed, device: torch.device, steps: int) -> None:
        self._feed, self._device, self._left = feed, device, steps
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="read-ahead")
        self._coming = self._begin()

    def next(self) -> StepData:
        """The next step, on the device. What went wrong while it was read is raised here."""
        assert self._coming is not None, "no more than the steps that were asked for"
        data = self._coming.result()
        self._coming = self._begin()
        return data.to(self._device)

    def _begin(self) -> Future[StepData] | None:
        self._left -= 1
        return self._pool.submit(self._read) if self._left >= 0 else None

    def close(self) -> None:
        """Read no more. A read that is under way ends by itself."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _read(self) -> StepData:
        data = self._feed.next()
        return data.pinned() if self._device.type == "cuda" else data
