"""Causal attention with a lower bound for each query: windows and documents without a mask of the whole sequence.

A query at position p sees the keys from ``lowest(p)`` to p. A window of W makes ``lowest(p) = p - W``, a document that
begins at e makes it ``e``, both make it the larger of the two. Memory is linear in the length in every case.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

# Queries of one tile. Fewer waste less at the edge of a window, more make better matrix products.
_TILE = 128


@dataclass(frozen=True)
class Tile:
    """A block of queries and the keys that any of them sees.

    Attributes:
        rows: samples of the batch.
        queries: numbers of the queries.
        keys: positions of the keys.
        mask: [queries, keys], True where a query may look.
    """

    rows: slice
    queries: slice
    keys: slice
    mask: Tensor

    def cut(self, query: Tensor, key: Tensor, value: Tensor) -> list[Tensor]:
        """What the tile needs of [b, n, s, d] and twice [b, g, t, d]."""
        at_keys = self.rows, slice(None), self.keys
        return [query[self.rows, :, self.queries], key[at_keys], value[at_keys]]


def lowest_visible(positions: Tensor, window: int | None, documents: Tensor | None) -> Tensor:
    """The first key that each query sees.

    Args:
        positions: [s] of the queries in the whole sequence.
        window: earlier tokens that a token sees beside itself; None: all.
        documents: [b, t] numbers; neighbours with the same number are one document. None: one document.

    Returns:
        [1, s], or [b, s] with documents.
    """
    lowest = torch.zeros_like(positions) if window is None else (positions - window).clamp(min=0)
    if documents is None:
        return lowest.unsqueeze(0)
    return torch.maximum(lowest, document_starts(documents)[:, positions])


def document_starts(documents: Tensor) -> Tensor:
    """For each token [b, t] the position at which its document begins."""
    place = torch.arange(documents.shape[1], device=documents.device)
    begins = torch.ones_like(documents, dtype=torch.bool)
    begins[:, 1:] = documents[:, 1:] != documents[:, :-1]
    return (begins * place).cummax(dim=1).values


def tiles(positions: Sequence[range], lowest: Tensor) -> Iterator[Tile]:
    """Cut queries into tiles.

    Args:
        positions: of the queries, as runs of neighbours in the order of the queries.
        lowest: [1, s] or [b, s], not falling within a run.
    """
    every = len(lowest) == 1
    for row in range(len(lowest)):
        first = 0  # number of the first query of the run
        for run in positions:
            for start in range(0, len(run), _TILE):
                part = run[start : start + _TILE]
                queries = slice(first + start, first + start + len(part))
                bounds = lowest[row, queries].unsqueeze(1)
                keys = slice(int(bounds[0]), part.stop)
                at = torch.arange(keys.start, keys.stop, device=lowest.device)
                own = torch.arange(part.start, part.stop, device=lowest.device).unsqueeze(1)
                rows = slice(None) if every else slice(row, row + 1)
                yield Tile(rows, queries, keys, (at >= bounds) & (at <= own))
            first += len(run)


class TiledAttention(torch.autograd.Function):
    """PyTorch's attention, tile by tile. The backward pass computes each tile again, so only the inputs are kept."""

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        positions: Sequence[range],
        lowest: Tensor,
        scale: float | None,
    ) -> Tensor:
        """Attend: [b, n, s, d] and twice [b, g, t, d] -> [b, n, s, d]; ``positions`` and ``lowest`` as in ``tiles``."""
        ctx.save_for_backward(query, key, value, lowest)
        ctx.positions, ctx.scale = positions, scale
        output = torch.empty_like(query)
        for tile in tiles(positions, lowest):
            output[tile.rows, :, tile.queries] = _attend(tile.cut(query, key, value), tile.mask, scale)
        return output

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of query, key and value."""
        *inputs, lowest = ctx.saved_tensors
        gradients = [torch.zeros_like(tensor) for tensor in inputs]
        for tile in tiles(ctx.positions, lowest):
            parts = [part.detach().requires_grad_() for part in tile.cut(*inputs)]
            with torch.enable_grad():
                output = _attend(parts, tile.mask, ctx.scale)
            found = torch.autograd.grad(output, parts, grad[tile.rows, :, tile.queries])
            for total, part in zip(tile.cut(*gradients), found, strict=True):
                total += part
        return *gradients, None, None, None


def _attend(inputs: Sequence[Tensor], mask: Tensor, scale: float | None) -> Tensor:
    query, key, value = inputs
    return F.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, scale=scale, enable_gqa=query.shape[1] != key.shape[1]
    )
