"""Grouped experts whose products use operands rounded as on MXFP8 hardware; each product is as in ``mxfp8_linear``.

The gradient of a weight sums over the tokens of one expert, so there blocks start anew with every expert, and the last
block of each is padded with zeros.
"""

import functools
from typing import Any

import torch
from torch import Tensor

from megatron_ko.models.experts import GroupedExperts, expert_linear
from megatron_ko.models.mxfp8.linear import Mxfp8Recipe
from megatron_ko.models.mxfp8.numbers import BLOCK


class _ExpertLinear(torch.autograd.Function):
    """[t, i] times [e, o, i] -> [t, o], each token by the matrix of its expert."""

    @staticmethod
    def forward(ctx: Any, tokens: Tensor, weight: Tensor, counts: Tensor, recipe: Mxfp8Recipe) -> Tensor:
        ctx.save_for_backward(tokens, weight, counts)
        ctx.recipe = recipe
        return expert_linear(recipe.values(tokens, 1), recipe.values(weight, 2), counts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None]:
        tokens, weight, counts = ctx.saved_tensors
        recipe: Mxfp8Recipe = ctx.recipe
        to_tokens = expert_linear(recipe.gradients(gradient, 1), recipe.values(weight, 1).transpose(1, 2), counts)
        positions, length = _positions(counts.to(tokens.device), tokens.device)
        rows = recipe.gradients(_spread(gradient, positions, length), 0)[positions]
        columns = recipe.values(_spread(tokens, positions, length), 0)[positions]
        return to_tokens, _weight_gradient(rows, columns, counts.tolist()), None, None


def _positions(counts: Tensor, device: torch.device) -> tuple[Tensor, int]:
    """Position of each token [t] if every expert begins a new block, and the total length."""
    whole = (counts + BLOCK - 1) // BLOCK * BLOCK
    gaps = (whole - counts).cumsum(0) - (whole - counts)
    return torch.arange(int(counts.sum()), device=device) + gaps.repeat_interleave(counts), int(whole.sum())


def _spread(tokens: Tensor, positions: Tensor, length: int) -> Tensor:
    return tokens.new_zeros(length, tokens.shape[1]).index_copy_(0, positions, tokens)


def _weight_gradient(gradient: Tensor, tokens: Tensor, counts: list[int]) -> Tensor:
    """[t, o], [t, i] -> [e, o, i]; zero for an expert without tokens."""
    result = gradient.new_empty(len(counts), gradient.shape[1], tokens.shape[1])
    for expert, (rows, columns) in enumerate(zip(gradient.split(counts), tokens.split(counts), strict=True)):
        torch.mm(rows.t(), columns, out=result[expert])
    return result


def mxfp8_expert_linear(tokens: Tensor, weight: Tensor, counts: Tensor, recipe: Mxfp8Recipe) -> Tensor:
    """``expert_linear`` with emulated products.

    Args:
        tokens: [t, i], sorted by expert.
        weight: [e, o, i].
        counts: [e], tokens of each expert; adds up to t.
        recipe: how operands are quantised.

    Returns:
        [t, o].
    """
    product: Tensor = _ExpertLinear.apply(tokens, weight, counts, recipe)
    return product


@functools.cache
def mxfp8_experts(recipe: Mxfp8Recipe) -> type[GroupedExperts]:
    """The portable experts with emulated products."""

    class Mxfp8Experts(GroupedExperts):
        """``GroupedExperts`` with emulated products."""

        def linear(self, tokens: Tensor, weight: Tensor, counts: Tensor) -> Tensor:
            """One emulated product for all experts."""
            return mxfp8_expert_linear(tokens, weight, counts, recipe)

    return Mxfp8Experts
