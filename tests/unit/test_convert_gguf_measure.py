"""The distance between distributions takes the memory of a few positions, whatever the length of the text."""

import tracemalloc
from typing import Any

import numpy as np

from megatron_ko.convert.gguf.gates import measure
from megatron_ko.convert.gguf.reference import LogitSample

POSITIONS, VOCABULARY = 256, 4000


class Found:
    """Logits as a file in llama.cpp gives them."""

    def __init__(self, logits: np.ndarray) -> None:
        self._logits = logits

    def logits(self, tokens: list[int]) -> np.ndarray:
        return self._logits[: len(tokens)]


def test_memory_does_not_grow_with_the_text_and_every_position_counts() -> None:
    draw = np.random.default_rng(0)
    tokens = draw.integers(VOCABULARY, size=POSITIONS).tolist()
    theirs = draw.normal(size=(POSITIONS, VOCABULARY)).astype(np.float32)
    ours: Any = Found(theirs + draw.normal(scale=0.1, size=theirs.shape).astype(np.float32))
    tracemalloc.start()
    found = measure(ours, [LogitSample(tokens, theirs, "text")])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < theirs.nbytes * 2, "one array of fp64 over all positions is twice as much"
    first, second = (
        np.log(np.exp(x) / np.exp(x).sum(-1, keepdims=True))
        for x in (theirs.astype(float), ours.logits(tokens).astype(float))
    )
    rise = np.array([(first - second)[place, tokens[place + 1]] for place in range(POSITIONS - 1)])
    assert found.positions == POSITIONS
    np.testing.assert_allclose(found.ratio, np.exp(rise.mean()), rtol=1e-6)
    np.testing.assert_allclose(found.kl, (np.exp(first) * (first - second)).sum() / POSITIONS, rtol=1e-5)
    np.testing.assert_allclose(found.difference, np.abs(theirs - ours.logits(tokens)).max())
    assert found.other_top == (theirs.argmax(-1) != ours.logits(tokens).argmax(-1)).mean()
