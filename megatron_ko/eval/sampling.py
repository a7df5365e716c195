"""Chooses the next token from logits: greedily, or by sampling with temperature, top-k and top-p."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How tokens are chosen.

    Attributes:
        max_new_tokens: maximum number of tokens added to a prompt.
        temperature: divides the logits; 0 takes the most likely token.
        top_p: sample only from the smallest set of most likely tokens with this total probability
            (Holtzman et al., 2020, arXiv:1904.09751); 1 means all.
        top_k: sample only from this many most likely tokens; 0 means all.
        seed: random seed. Prompt number i uses ``seed + i``, whatever the other prompts are.
    """

    max_new_tokens: int = 128
    temperature: float = 0.8
    top_p: float = 0.9
    top_k: int = 0
    seed: int = 0


class Sampler:
    """Samples tokens for a batch of prompts, each with its own random generator.

    Args:
        sampling: how tokens are chosen.
        batch: number of prompts.
    """

    def __init__(self, sampling: Sampling, batch: int) -> None:
        self._sampling = sampling
        # On the CPU, so that the draws do not depend on the device that computed the logits.
        self._generators = [torch.Generator().manual_seed(sampling.seed + number) for number in range(batch)]

    def choose(self, logits: Tensor, rows: Sequence[int]) -> dict[int, int]:
        """The next tokens of some of the prompts, row -> token. The generators of the others do not advance.

        Args:
            logits: [b, v], without padding rows of the vocabulary.
            rows: prompts that get a token.
        """
        wanted = logits[list(rows)]
        if self._sampling.temperature == 0:
            return dict(zip(rows, wanted.argmax(dim=-1).tolist(), strict=True))
        probabilities = probabilities_of(wanted.float().cpu(), self._sampling)
        draws = zip(rows, probabilities, strict=True)
        return {row: int(torch.multinomial(p, 1, generator=self._generators[row])) for row, p in draws}


def probabilities_of(logits: Tensor, sampling: Sampling) -> Tensor:
    """Sampling probabilities: temperature, then top-k, then top-p of the rest; [b, v] -> [b, v], rows sum to 1.

    Args:
        logits: [b, v].
        sampling: with a temperature above 0.
    """
    ordered, order = (logits / sampling.temperature).sort(dim=-1, descending=True, stable=True)
    if sampling.top_k:
        ordered[:, sampling.top_k :] = -torch.inf
    probabilities = ordered.softmax(dim=-1)
    # A token is kept while the total probability before it is below top_p, so the first one always is.
    before = probabilities.cumsum(dim=-1) - probabilities
    probabilities[before >= sampling.top_p] = 0
    probabilities /= probabilities.sum(dim=-1, keepdim=True)
    return torch.zeros_like(probabilities).scatter_(-1, order, probabilities)
