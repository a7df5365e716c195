"""What tokens are drawn from, against transformers' logits processors; and reproducible draws."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from megatron_ko.eval.sampling import Sampler, Sampling, probabilities_of


def peer(logits: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """The same distribution by transformers."""
    scores = TemperatureLogitsWarper(sampling.temperature)(None, logits)
    if sampling.top_k:
        scores = TopKLogitsWarper(sampling.top_k)(None, scores)
    if sampling.top_p < 1:
        scores = TopPLogitsWarper(sampling.top_p)(None, scores)
    return scores.softmax(dim=-1)


@settings(max_examples=80, derandomize=True)
@given(
    seed=st.integers(0, 10_000),
    temperature=st.floats(0.1, 3),
    top_p=st.floats(0.05, 1),
    top_k=st.integers(0, 12),
)
def test_distribution_is_that_of_transformers(seed: int, temperature: float, top_p: float, top_k: int) -> None:
    logits = 3 * torch.randn(4, 50, generator=torch.Generator().manual_seed(seed))
    sampling = Sampling(temperature=temperature, top_p=top_p, top_k=top_k)
    ours = probabilities_of(logits, sampling)
    torch.testing.assert_close(ours.sum(dim=-1), torch.ones(4))
    torch.testing.assert_close(ours, peer(logits, sampling), atol=2e-6, rtol=1e-5)


def test_the_most_likely_token_always_stays() -> None:
    logits = torch.tensor([[0.0, 9.0, 1.0]])
    assert probabilities_of(logits, Sampling(temperature=1.0, top_p=0.001)).tolist() == [[0.0, 1.0, 0.0]]


def test_greedy_takes_the_largest() -> None:
    logits = torch.tensor([[0.0, 2.0, 1.0], [5.0, 2.0, 1.0]])
    assert Sampler(Sampling(temperature=0), 2).choose(logits, [0, 1]) == {0: 1, 1: 0}
    assert Sampler(Sampling(temperature=0), 2).choose(logits, [1]) == {1: 0}


def draws(sampler: Sampler, logits: torch.Tensor, rows: list[int], number: int) -> list[dict[int, int]]:
    return [sampler.choose(logits, rows) for _ in range(number)]


def test_a_seed_gives_the_same_draws_whatever_the_batch() -> None:
    logits = torch.randn(3, 100, generator=torch.Generator().manual_seed(0))
    sampling = Sampling(temperature=1.0, top_p=1.0, seed=5)
    first, again = (draws(Sampler(sampling, 3), logits, [0, 1, 2], 20) for _ in range(2))
    assert first == again
    # Row 1 alone, after row 0 drew on: the draws of one row do not move those of another.
    sampler = Sampler(sampling, 3)
    draws(sampler, logits, [0], 7)
    assert [d[1] for d in draws(sampler, logits, [1], 20)] == [d[1] for d in first]
    other = draws(Sampler(Sampling(temperature=1.0, top_p=1.0, seed=6), 3), logits, [0, 1, 2], 20)
    assert other != first


@pytest.mark.parametrize("temperature", [0.7, 1.5])
def test_draws_follow_the_distribution(temperature: float) -> None:
    logits = torch.tensor([[1.0, 0.0, -1.0, 0.5]])
    sampling = Sampling(temperature=temperature, top_p=1.0, seed=1)
    sampler, number = Sampler(sampling, 1), 4000
    counts = torch.zeros(4)
    for draw in draws(sampler, logits, [0], number):
        counts[draw[0]] += 1
    torch.testing.assert_close(counts / number, probabilities_of(logits, sampling)[0], atol=0.03, rtol=0)
