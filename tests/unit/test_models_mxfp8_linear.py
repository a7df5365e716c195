"""The three matrix products of an emulated layer, each against explicitly quantised and restored operands."""

import mxfp8_reference as reference
import pytest
import torch

from megatron_ko.models.mxfp8.linear import Mxfp8Recipe, mxfp8_linear
from megatron_ko.models.mxfp8.numbers import E4M3, E5M2

GRADIENTS = {"E4M3": (E4M3, reference.E4M3), "E5M2": (E5M2, reference.E5M2)}


def restored(matrix: torch.Tensor, form: reference.Format, dim: int, up: bool) -> torch.Tensor:
    """What the slow reference makes of a matrix, in blocks of 32 along a dimension."""
    rows = (matrix.t() if dim == 0 else matrix).tolist()
    result = []
    for row in rows:
        values: list[float] = []
        for start in range(0, len(row), 32):
            block = row[start : start + 32]
            values += reference.restore(*reference.convert(block, form, up), form, len(block))
        result.append(values)
    table = torch.tensor(result)
    return table.t() if dim == 0 else table


def whole(generator: torch.Generator, *shape: int) -> torch.Tensor:
    """Whole numbers of many magnitudes. Sums of their products are exact in fp32, in whatever order."""
    magnitude = torch.randint(1, 8, shape, generator=generator)
    return torch.randint(-128, 128, shape, generator=generator).div(2**magnitude, rounding_mode="trunc").float()


@pytest.mark.parametrize("rounding", ["down", "up"])
@pytest.mark.parametrize("name", GRADIENTS)
def test_each_product_sees_its_own_blocks(name: str, rounding: str) -> None:
    element, form = GRADIENTS[name]
    generator = torch.Generator().manual_seed(1)
    inputs, weight = whole(generator, 24, 2, 64), whole(generator, 96, 64)  # [s, b, k], [n, k]
    gradient = whole(generator, 24, 2, 96)
    inputs.requires_grad_()
    weight.requires_grad_()
    output = mxfp8_linear(inputs, weight, Mxfp8Recipe(element, rounding))
    output.backward(gradient)

    up = rounding == "up"
    tokens, rows = inputs.detach().view(48, 64), gradient.view(48, 96)  # 48 tokens: one and a half blocks
    matrix = weight.detach()
    forward = restored(tokens, reference.E4M3, 1, up) @ restored(matrix, reference.E4M3, 1, up).t()
    to_inputs = restored(rows, form, 1, up) @ restored(matrix, reference.E4M3, 0, up)
    to_weight = restored(rows, form, 0, up).t() @ restored(tokens, reference.E4M3, 0, up)
    assert output.view(48, 96).equal(forward)
    assert inputs.grad is not None and inputs.grad.view(48, 64).equal(to_inputs)
    assert weight.grad is not None and weight.grad.equal(to_weight)
    if not up:  # The largest of a block saturate: quantised the other way round, each product is another.
        assert not forward.equal(restored(tokens, reference.E4M3, 0, up) @ restored(matrix, reference.E4M3, 0, up).t())
        assert not to_inputs.equal(restored(rows, form, 0, up) @ restored(matrix, reference.E4M3, 1, up))
        assert not to_weight.equal(restored(rows, form, 1, up).t() @ restored(tokens, reference.E4M3, 1, up))


def test_only_wanted_gradients_are_computed() -> None:
    recipe = Mxfp8Recipe(E4M3, "down")
    inputs, weight = torch.randn(4, 32, requires_grad=True), torch.randn(64, 32)
    mxfp8_linear(inputs, weight, recipe).sum().backward()
    assert inputs.grad is not None and weight.grad is None
    inputs, weight = torch.randn(4, 32), torch.randn(64, 32, requires_grad=True)
    mxfp8_linear(inputs, weight, recipe).sum().backward()
    assert inputs.grad is None and weight.grad is not None


def test_bf16_operands_are_those_of_fp32() -> None:
    """The products round to bf16 at the end, the operands do not."""
    generator = torch.Generator().manual_seed(2)
    inputs, weight = torch.randn(64, 128, generator=generator), torch.randn(32, 128, generator=generator)
    recipe = Mxfp8Recipe(E4M3, "down")
    short = mxfp8_linear(inputs.bfloat16(), weight.bfloat16(), recipe)
    long = mxfp8_linear(inputs.bfloat16().float(), weight.bfloat16().float(), recipe)
    assert short.dtype == torch.bfloat16
    torch.testing.assert_close(short, long.bfloat16(), rtol=2**-7, atol=1e-6)
    assert (short == long.bfloat16()).float().mean() > 0.99


def test_an_infinity_is_not_hidden() -> None:
    inputs, weight = torch.randn(2, 64), torch.randn(32, 64)
    inputs[0, 3] = torch.inf
    output = mxfp8_linear(inputs, weight, Mxfp8Recipe(E4M3, "down"))
    assert output[0].isnan().all() and output[1].isfinite().all()
