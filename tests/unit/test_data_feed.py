"""Reading ahead: the time of the data disappears behind the step, and nothing is lost or reordered."""

import time

import pytest
import torch

from megatron_ko.data.training.batch import Batch
from megatron_ko.data.training.feed import ReadAhead, StepData
from megatron_ko.errors import DataError

CPU = torch.device("cpu")
PAUSE = 0.2


class Slow:
    """Step n is full of n and takes a while to read; the last one cannot be read."""

    def __init__(self, steps: int, pause: float = 0.0) -> None:
        self._left, self._pause, self._step = steps, pause, 0

    def next(self) -> StepData:
        time.sleep(self._pause)
        if self._step == self._left:
            raise DataError("the shard is damaged")
        self._step += 1
        part = torch.full((1, 4), self._step)
        return StepData((Batch(part, part, part.float(), part),), 1, {"corpus": 4}, {"samples": self._step})


def test_steps_come_in_order_and_say_where_the_data_goes_on() -> None:
    feed = ReadAhead(Slow(5), CPU, steps=6)
    for number in range(1, 6):
        data = feed.next()
        assert data.position == {"samples": number}  # of what was given out, however far ahead it has read
        assert data.batches[0].tokens.tolist() == [[number] * 4] and data.batches[0].shape == (1, 4)
    with pytest.raises(DataError, match="the shard is damaged"):
        feed.next()
    feed.close()


def test_a_step_does_not_wait_for_what_was_read_meanwhile() -> None:
    feed = ReadAhead(Slow(4, PAUSE), CPU, steps=4)
    waited = 0.0
    for _ in range(4):
        time.sleep(3 * PAUSE)  # a step that takes longer than its data, also on a busy machine
        started = time.perf_counter()
        feed.next()
        waited += time.perf_counter() - started
    feed.close()
    assert waited < 2 * PAUSE  # without reading ahead: four times PAUSE
