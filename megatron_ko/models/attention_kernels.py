"""Causal attention with a lower bound for each query: windows and documents without a mask of the whole sequence.

A query at position p sees the keys from ``lowest(p)`` to p. With a window of W, ``lowest(p) = p - W``; with a document
that begins at e it is ``e``; with both, the larger of the two. On a CPU the work is done in tiles, each with a small
mask. On CUDA one compiled flex-attention kernel does it and skips empty blocks. Either way, memory is linear in the
length.
"""

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from megatron_ko.parallel.platform import get_platform

# Queries per tile. A smaller tile wastes less at the edge of a window, a larger one makes better matrix products.
_TILE = 128


@dataclass(frozen=True)
class View:
    """What queries see.

    Attributes:
        positions: positions of the queries in the whole sequence, as contiguous ranges in the order of the queries.
        window: earlier tokens that a token sees besides itself; None: all.
        documents: [b, t] numbers; adjacent tokens with the same number are one document. None: a single document.
    """

    positions: tuple[range, ...]
    window: int | None = None
    documents: Tensor | None = None

    def lowest(self, device: torch.device) -> Tensor:
        """The first key that each query sees: [1, s], or [b, s] with documents."""
        places = self.places(device)
        lowest = torch.zeros_like(places) if self.window is None else (places - self.window).clamp(min=0)
        if self.documents is None:
            return lowest.unsqueeze(0)
        return torch.maximum(lowest, document_starts(self.documents)[:, places])

    def places(self, device: torch.device) -> Tensor:
        """Positions of the queries [s]."""
        return torch.cat([torch.arange(run.start, run.stop, device=device) for run in self.positions])


def attend(query: Tensor, key: Tensor, value: Tensor, view: View, scale: float | None) -> Tensor:
    """Grouped-query attention, differentiable.

    Args:
        query: [b, n, s, d].
        key, value: [b, g, t, d] of the whole sequence.
        view: what each query sees.
        scale: factor on the scores; None: 1 / sqrt(d).

    Returns:
        [b, n, s, d].
    """
    if get_platform().compiles_kernels:
        return attend_in_blocks(query, key, value, view, scale)
    output: Tensor = TiledAttention.apply(query, key, value, view.positions, view.lowest(query.device), scale)
    return output


def document_starts(documents: Tensor) -> Tensor:
    """For each token [b, t], the position where its document begins."""
    place = torch.arange(documents.shape[1], device=documents.device)
    begins = torch.ones_like(documents, dtype=torch.bool)
    begins[:, 1:] = documents[:, 1:] != documents[:, :-1]
    return (begins * place).cummax(dim=1).values


@dataclass(frozen=True)
class Tile:
    """A block of queries and the keys that any of them sees.

    Attributes:
        rows: samples of the batch.
        queries: indices of the queries.
        keys: positions of the keys.
        mask: [queries, keys], True where a query may look; None: everywhere.
    """

    rows: slice
    queries: slice
    keys: slice
    mask: Tensor | None

    def of_queries(self, tensor: Tensor, groups: int) -> Tensor:
        """This tile's part of [b, n, s, d], with the heads of a group stacked: [b, g, n / g * queries, d]."""
        part = tensor[self.rows, :, self.queries]
        return part.reshape(len(part), groups, -1, part.shape[-1])

    def of_keys(self, tensor: Tensor) -> Tensor:
        """This tile's part of [b, g, t, d]."""
        return tensor[self.rows, :, self.keys]

    def bias(self, query: Tensor) -> Tensor | None:
        """The bias added to the scores of [b, g, n / g * queries, d]: 0 or minus infinity."""
        if self.mask is None:
            return None
        bias = torch.zeros_like(self.mask, dtype=query.dtype).masked_fill_(~self.mask, -math.inf)
        return bias.repeat(query.shape[2] // len(bias), 1)[None, None]


def tiles(positions: Sequence[range], lowest: Tensor) -> Iterator[Tile]:
    """Cut queries into tiles: the same tiles for all rows of the batch, or, with documents, separate tiles per row.

    Args:
        positions: of the queries, as in ``View``.
        lowest: [1, s] or [b, s], never decreasing within a range.
    """
    for row in range(len(lowest)):
        rows = slice(None) if len(lowest) == 1 else slice(row, row + 1)
        first = 0  # index of the first query of the range
        for run in positions:
            for start in range(0, len(run), _TILE):
                part = run[start : start + _TILE]
                queries = slice(first + start, first + start + len(part))
                bounds = lowest[row, queries].unsqueeze(1)
                keys = slice(int(bounds[0]), part.stop)
                yield Tile(rows, queries, keys, _tile_mask(part, keys, bounds) if len(part) > 1 else None)
            first += len(run)


def _tile_mask(queries: range, keys: slice, lowest: Tensor) -> Tensor:
    at = torch.arange(keys.start, keys.stop, device=lowest.device)
    own = torch.arange(queries.start, queries.stop, device=lowest.device).unsqueeze(1)
    return (at >= lowest) & (at <= own)


# PyTorch's CPU attention and its gradient as operators. Unlike the public function they return and accept the sums of
# the softmax; without these the backward pass would have to compute every tile twice.
_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


class TiledAttention(torch.autograd.Function):
    """PyTorch's attention, tile by tile. No mask is kept for the backward pass."""

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
        """[b, n, s, d] and twice [b, g, t, d] -> [b, n, s, d]; ``positions`` and ``lowest`` as in ``tiles``."""
        output, sums = torch.empty_like(query), []
        for tile in tiles(positions, lowest):
            queries = tile.of_queries(query, key.shape[1])
            keys, values = tile.of_keys(key), tile.of_keys(value)
            part, log_sum = _flash(queries, keys, values, 0.0, False, attn_mask=tile.bias(queries), scale=scale)
            output[tile.rows, :, tile.queries] = part.reshape(len(part), query.shape[1], -1, part.shape[-1])
            sums.append(log_sum)
        ctx.save_for_backward(query, key, value, lowest, output, *sums)
        ctx.positions, ctx.scale = positions, scale
        return output

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of query, key and value."""
        query, key, value, lowest, output, *sums = ctx.saved_tensors
        of_query, of_key, of_value = torch.empty_like(query), torch.zeros_like(key), torch.zeros_like(value)
        for tile, log_sum in zip(tiles(ctx.positions, lowest), sums, strict=True):
            queries, outputs, grads = (tile.of_queries(tensor, key.shape[1]) for tensor in (query, output, grad))
            inputs = queries, tile.of_keys(key), tile.of_keys(value)
            bias = tile.bias(queries)
            by_query, by_key, by_value = _flash_backward(
                grads.contiguous(), *inputs, outputs, log_sum, 0.0, False, attn_mask=bias, scale=ctx.scale
            )
            of_query[tile.rows, :, tile.queries] = by_query.reshape(len(grads), query.shape[1], -1, query.shape[-1])
            tile.of_keys(of_key).add_(by_key)
            tile.of_keys(of_value).add_(by_value)
        return of_query, of_key, of_value, None, None, None


def attend_in_blocks(query: Tensor, key: Tensor, value: Tensor, view: View, scale: float | None) -> Tensor:
    """``attend`` with flex attention (Dong et al., 2024, arXiv:2412.05496)."""
    mask = _block_mask(view, len(query), key.shape[2], query.device)
    output: Tensor = _compiled(flex_attention)(
        query, key, value, block_mask=mask, scale=scale, enable_gqa=query.shape[1] != key.shape[1]
    )
    return output


# The layers of a micro-batch share one or two views; their documents are compared by identity.
@functools.lru_cache(maxsize=8)
def _block_mask(view: View, rows: int, keys: int, device: torch.device) -> BlockMask:
    places, lowest = view.places(device), view.lowest(device)
    bounds = lowest.expand(rows, -1).contiguous()  # the kernel needs all rows, even if they have the same blocks

    def visible(row: Tensor, head: Tensor, query: Tensor, at: Tensor) -> Tensor:
        return (at <= places[query]) & (at >= bounds[row, query])

    # When compiled, this never builds the full mask of single positions.
    mask: BlockMask = _compiled(create_block_mask)(
        visible, rows if len(lowest) > 1 else None, None, len(places), keys, device=device
    )
    return mask


@functools.cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    compiled: Callable[..., Any] = torch.compile(function)
    return compiled
