"""Initial weights that depend on the seed alone: the same numbers under every parallel layout, device and precision.

Every parameter is found through ``sharded_state_dict()``, which says which part of which global tensor it is. A global
tensor is drawn in blocks of rows, each from its own generator. A rank therefore draws only the rows that it holds, and
padding the vocabulary does not change any value.
"""

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence

import torch
from megatron.core.dist_checkpointing.mapping import ShardedTensor

from megatron_ko.config import ModelConfig
from megatron_ko.models.parameter_policy import Start, kind_of, sharded_parts

_BLOCK_ROWS = 256


def initialise_weights(chunks: Sequence[torch.nn.Module], model: ModelConfig, seed: int) -> None:
    """Fill every parameter of this rank's chunks with its initial values; padding rows of the vocabulary are 0."""
    filled = 0
    with torch.no_grad():
        for part in sharded_parts(chunks):
            if kind_of(part.key).start is Start.STATE:
                continue
            _fill(part, model, seed)
            filled += part.data.numel()
    expected = sum(parameter.numel() for chunk in chunks for parameter in chunk.parameters())
    assert filled == expected, f"{filled} of {expected} values were initialised"


def _fill(part: ShardedTensor, model: ModelConfig, seed: int) -> None:
    if kind_of(part.key).start is Start.ONES:
        part.data.fill_(1.0)
        return
    # Axes before those of the matrix: layer and expert. Depending on the back end, experts are one tensor or many.
    stack = part.global_offset[:-2]
    if part.data.dim() == 2:
        _fill_matrix(part, part.data, stack, model, seed)
        return
    for number, matrix in enumerate(part.data):
        _fill_matrix(part, matrix, (*stack[:-1], stack[-1] + number), model, seed)


def _fill_matrix(
    part: ShardedTensor, matrix: torch.Tensor, stack: tuple[int, ...], model: ModelConfig, seed: int
) -> None:
    """Fill one matrix of a global tensor; ``stack`` says which."""
    row, column = part.global_offset[-2:]
    rows, columns = part.global_shape[-2:]
    kind = kind_of(part.key)
    if kind.vocabulary:
        rows = model.vocab_size
    std = model.init_std / (math.sqrt(2 * model.num_layers) if kind.start is Start.RESIDUAL else 1)
    first, last = row, min(row + matrix.shape[0], rows)
    width = slice(column, column + matrix.shape[1])
    for start, block in row_blocks(f"{seed}/{part.key}/{stack}", range(first, last), columns):
        matrix[start - first : start - first + len(block)] = block[:, width] * std
    matrix[max(0, last - first) :] = 0.0


def row_blocks(
    name: str, rows: range, columns: int, draw: Callable[..., torch.Tensor] = torch.randn
) -> Iterator[tuple[int, torch.Tensor]]:
    """Rows of a random global matrix, as (first row, [rows, columns]) pairs that together cover ``rows``.

    Args:
        name: of the matrix, with the seed.
        rows: which ones.
        columns: of the matrix.
        draw: its distribution: ``torch.randn`` or ``torch.rand``.
    """
    for number in range(rows.start // _BLOCK_ROWS, -(-rows.stop // _BLOCK_ROWS)):
        digest = hashlib.sha256(f"{name}/{number}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
        block = draw(_BLOCK_ROWS, columns, generator=generator, dtype=torch.float32)
        start, stop = max(rows.start, number * _BLOCK_ROWS), min(rows.stop, (number + 1) * _BLOCK_ROWS)
        if start < stop:
            yield start, block[start - number * _BLOCK_ROWS : stop - number * _BLOCK_ROWS]
