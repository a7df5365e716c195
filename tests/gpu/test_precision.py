"""Number formats on a CUDA device: emulation gives the CPU's bits, hardware gives emulation's values, recipes train."""

import pytest
import torch
from rehearsal import Losses

from megatron_ko.models.mxfp8.linear import Mxfp8Recipe, mxfp8_linear
from megatron_ko.models.mxfp8.numbers import E4M3, E5M2, ElementFormat, quantise, round_trip
from megatron_ko.models.precision import NEEDS, transformer_engine_release, why_not

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine"),
]
FORMATS = pytest.mark.parametrize("element", [E4M3, E5M2], ids=["e4m3", "e5m2"])


def capability() -> tuple[int, int]:
    return torch.cuda.get_device_capability()


def need(recipe: str) -> None:
    """Skip a test where the device or Transformer Engine does not have a recipe."""
    if reason := why_not(recipe, capability(), transformer_engine_release()):
        pytest.skip(f"{recipe}: {reason}")


def adversarial() -> torch.Tensor:
    """[512, 96]: every magnitude of fp32 beside each other, with subnormals, zeros, infinities and NaN."""
    generator = torch.Generator().manual_seed(1)
    values = torch.randn(512, 96, generator=generator)
    values[:256] = torch.ldexp(values[:256], torch.randint(-149, 127, (256, 96), generator=generator))
    values[256:384] = torch.ldexp(values[256:384], torch.randint(-149, 127, (128, 1), generator=generator))
    values[384, :40], values[385, ::7] = 0.0, -0.0
    values[386, 3], values[387, 50], values[388, 95] = torch.inf, torch.nan, -torch.inf
    return values


@FORMATS
@pytest.mark.parametrize("rounding", ["down", "up"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_emulation_gives_the_bits_of_the_cpu(element: ElementFormat, rounding: str, dtype: torch.dtype) -> None:
    values = adversarial().to(dtype)
    for dim in (0, 1):
        here, there = (quantise(v, element, dim, rounding) for v in (values, values.cuda()))
        assert there.scales.cpu().equal(here.scales)
        got, expected = there.elements.cpu(), here.elements
        assert got.isnan().equal(expected.isnan())
        assert got.nan_to_num(0.0).view(torch.int32).equal(expected.nan_to_num(0.0).view(torch.int32))
        restored = round_trip(values.cuda(), element, dim, rounding).cpu()
        torch.testing.assert_close(restored, round_trip(values, element, dim, rounding), rtol=0, atol=0, equal_nan=True)


def test_products_give_the_bits_of_the_cpu() -> None:
    """Whole numbers: sums are exact in fp32 in whatever order."""
    generator = torch.Generator().manual_seed(2)
    drawn = [torch.randint(-127, 128, shape, generator=generator).float() for shape in ((64, 96), (128, 96), (64, 128))]
    results = []
    for device in ("cpu", "cuda"):
        inputs, weight, gradient = (tensor.to(device) for tensor in drawn)
        inputs.requires_grad_()
        weight.requires_grad_()
        output = mxfp8_linear(inputs, weight, Mxfp8Recipe(E5M2, "down"))
        output.backward(gradient)
        results.append([tensor.detach().cpu() for tensor in (output, inputs.grad, weight.grad)])
    assert all(got.equal(expected) for got, expected in zip(*results, strict=True))


def test_hardware_multiplies_what_is_emulated() -> None:
    """PyTorch's scaled product on the codes of ``quantise``."""
    if capability() < (10, 0):
        pytest.skip(f"sm_{capability()[0]}{capability()[1]} has no products of MX blocks")
    generator = torch.Generator(device="cuda").manual_seed(3)
    left, right = (torch.randn(256, 256, device="cuda", generator=generator) for _ in range(2))
    operands, scales = zip(*(codes(matrix) for matrix in (left, right)), strict=True)
    product = torch._scaled_mm(operands[0], operands[1].t(), scales[0], scales[1], out_dtype=torch.bfloat16)
    expected = round_trip(left, E4M3, 1) @ round_trip(right, E4M3, 1).t()
    torch.testing.assert_close(product.float(), expected, rtol=2**-7, atol=1e-3)


def codes(matrix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Element codes, and scales in the order that tensor cores read: tiles of 128 rows by 4 blocks."""
    blocks = quantise(matrix, E4M3, 1)
    scales = blocks.scales.squeeze(2).to(torch.uint8)
    tiles = scales.view(len(scales) // 128, 128, -1, 4).transpose(1, 2).reshape(-1, 4, 32, 4).transpose(1, 2)
    return blocks.elements.flatten(1).to(E4M3.dtype), tiles.flatten().view(torch.float8_e8m0fnu)


@FORMATS
def test_transformer_engine_quantises_as_is_emulated(element: ElementFormat) -> None:
    need("mxfp8")
    import transformer_engine_torch as engine
    from transformer_engine.pytorch.tensor.mxfp8_tensor import MXFP8Quantizer

    kind = engine.DType.kFloat8E4M3 if element is E4M3 else engine.DType.kFloat8E5M2
    values = torch.randn(256, 256, device="cuda", dtype=torch.bfloat16)
    theirs = MXFP8Quantizer(fp8_dtype=kind, rowwise=True, columnwise=True)(values).dequantize()
    assert theirs.to(torch.bfloat16).equal(round_trip(values, element, 1, "up"))


@pytest.mark.xdist_group("recipes")
@pytest.mark.parametrize("recipe", NEEDS)
def test_every_recipe_of_this_device_trains(trained: Losses, recipe: str) -> None:
    need(recipe)
    plain, low = trained(), trained(f"precision.recipe={recipe}")
    assert low == pytest.approx(plain, rel=0.02) and low != plain


@pytest.mark.xdist_group("recipes")
@pytest.mark.parametrize("recipe", ["fp8_current", "mxfp8"])
def test_weights_in_8_bits_train(trained: Losses, recipe: str) -> None:
    need(recipe)
    words = (f"precision.recipe={recipe}", "precision.first_layers_high=1")
    assert trained(*words, "precision.fp8_weights=true") == pytest.approx(trained(*words), rel=0.02)


@pytest.mark.xdist_group("recipes")
def test_emulated_training_is_like_hardwares(trained: Losses) -> None:
    need("mxfp8")
    words = ("precision.recipe=mxfp8", "precision.mxfp8.emulate=true", "precision.mxfp8.scale_rounding=up")
    assert trained(*words) == pytest.approx(trained("precision.recipe=mxfp8"), rel=0.02)
