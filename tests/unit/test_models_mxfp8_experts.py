"""Grouped experts under emulation: each is as if it were alone."""

import pytest
import torch

from megatron_ko.models.mxfp8.experts import mxfp8_expert_linear
from megatron_ko.models.mxfp8.linear import Mxfp8Recipe, mxfp8_linear
from megatron_ko.models.mxfp8.numbers import E4M3, E5M2


@pytest.mark.parametrize("gradient", [E4M3, E5M2], ids=["e4m3", "hybrid"])
@pytest.mark.parametrize("counts", [[5, 0, 33, 64, 1], [0, 0, 7], [32, 32], [0, 0]], ids=str)
def test_every_expert_is_as_if_it_were_alone(counts: list[int], gradient: object) -> None:
    recipe = Mxfp8Recipe(gradient, "down")  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randn(sum(counts), 64, generator=generator).exp().requires_grad_()
    weight = torch.randn(len(counts), 96, 64, generator=generator).requires_grad_()
    upstream = torch.randn(sum(counts), 96, generator=generator).exp()
    output = mxfp8_expert_linear(tokens, weight, torch.tensor(counts), recipe)
    output.backward(upstream)
    start = 0
    for expert, count in enumerate(counts):
        part = slice(start, start := start + count)
        mine = tokens.detach()[part].clone().requires_grad_()
        matrix = weight.detach()[expert].clone().requires_grad_()
        alone = mxfp8_linear(mine, matrix, recipe)
        alone.backward(upstream[part])
        for got, expected in (
            (output[part], alone),
            (tokens.grad[part], mine.grad),
            (weight.grad[expert], matrix.grad),
        ):
            torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-5 * float(expected.abs().sum() > 0))
    assert start == len(tokens)
