"""Moving rows: between padded and packed sequences, and to multiples for experts."""

from collections.abc import Sequence

import torch

from stub.extension import kernel


@kernel
def convert_thd_to_bshd(tokens: torch.Tensor, borders: torch.Tensor, batch: int, length: int) -> torch.Tensor:
    """Packed sequences, one a row, zeros behind them."""
    out = tokens.new_zeros(batch, length, *tokens.shape[1:])
    for row, (start, stop) in enumerate(zip(borders.tolist(), borders.tolist()[1:], strict=False)):
        out[row, : stop - start] = tokens[start:stop]
    return out


@kernel
def convert_bshd_to_thd(rows: torch.Tensor, borders: torch.Tensor, tokens: int) -> torch.Tensor:
    """The other way round."""
    return torch.cat([row[:length] for row, length in zip(rows, borders.diff().tolist(), strict=True)])


@kernel
def fused_multi_row_padding(
    tokens: torch.Tensor, out: torch.Tensor, counts: Sequence[int], padded: Sequence[int]
) -> None:
    """The tokens of each expert, and zeros up to a multiple."""
    out.zero_()
    for part, room in zip(torch.split(tokens, list(counts)), torch.split(out, list(padded)), strict=True):
        room[: len(part)] = part


@kernel
def fused_multi_row_unpadding(
    padded_tokens: torch.Tensor, out: torch.Tensor, padded: Sequence[int], counts: Sequence[int]
) -> None:
    """The other way round."""
    for part, room in zip(torch.split(out, list(counts)), torch.split(padded_tokens, list(padded)), strict=True):
        part.copy_(room[: len(part)])
