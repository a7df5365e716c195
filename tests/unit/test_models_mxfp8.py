"""MXFP8 against a reference in exact fractions, against PyTorch's own 8-bit types, and as properties."""

import itertools
import math
import struct

import mxfp8_reference as reference
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_ko.models.mxfp8.numbers import BLOCK, E4M3, E5M2, NAN_SCALE, ElementFormat, quantise, round_trip

FORMATS = {"E4M3": (E4M3, reference.E4M3), "E5M2": (E5M2, reference.E5M2)}
BOTH = pytest.mark.parametrize("name", FORMATS)
ROUNDINGS = pytest.mark.parametrize("rounding", ["down", "up"])
SMALLEST = 2.0**-149  # subnormal fp32


def codes_of(values: torch.Tensor, element: ElementFormat) -> torch.Tensor:
    """Element codes; the cast is exact, because the values are on the element's grid."""
    cast = values.to(element.dtype)
    assert cast.float().equal(values) and cast.float().signbit().equal(values.signbit())
    return cast.view(torch.uint8)


def assert_like_reference(values: list[float], name: str, rounding: str) -> None:
    """Scales, element codes and restored values of one block, bit for bit."""
    element, form = FORMATS[name]
    block = torch.tensor(values, dtype=torch.float32)
    scale, codes = reference.convert(block.tolist(), form, rounding == "up")
    got = quantise(block, element, 0, rounding)
    assert got.scales.item() == scale
    if codes is not None:
        assert codes_of(got.elements[0, : len(values)], element).tolist() == codes
    restored = torch.tensor(reference.restore(scale, codes, form, len(values)), dtype=torch.float64).float()
    torch.testing.assert_close(got.dequantise(), restored, rtol=0, atol=0, equal_nan=True)


@BOTH
def test_every_code_has_the_value_of_the_specification(name: str) -> None:
    element, form = FORMATS[name]
    values = torch.arange(256, dtype=torch.uint8).view(element.dtype).float().tolist()
    expected = [form.decode(code) for code in range(256)]
    assert [struct.pack("d", v) for v in values if v == v] == [struct.pack("d", v) for v in expected if v == v]
    assert [math.isnan(v) for v in values] == [math.isnan(v) for v in expected]
    assert max(v for v in expected if math.isfinite(v)) == element.largest


@BOTH
@ROUNDINGS
def test_every_code_survives_at_every_scale(name: str, rounding: str) -> None:
    element, form = FORMATS[name]
    finite = [code for code in range(256) if math.isfinite(form.decode(code))]
    values = torch.tensor([form.decode(code) for code in finite], dtype=torch.float64)
    for exponent in (-127, -60, 0, 60, 127 - form.emax):
        # Every block has the largest value too, so its scale is known.
        scaled = (values * 2.0**exponent).float()[:, None].repeat(1, BLOCK)
        scaled[:, 0] = element.largest * 2.0**exponent
        got = quantise(scaled, element, scale_rounding=rounding)
        assert got.scales.unique().tolist() == [exponent + 127]
        assert codes_of(got.elements[:, 0, 1].contiguous(), element).tolist() == finite
        assert got.dequantise().equal(scaled)


@BOTH
def test_midpoints_go_to_the_even_code(name: str) -> None:
    element, form = FORMATS[name]
    finite = [form.decode(code) for code in range(128) if math.isfinite(form.decode(code))]
    for lower, (low, high) in enumerate(itertools.pairwise(finite)):
        middle = (low + high) / 2
        near = (math.nextafter(middle, 0.0), middle, math.nextafter(middle, math.inf))
        block = torch.tensor([element.largest, *(f32(v, low, high) for v in near)])
        got = codes_of(quantise(block, element, 0).elements[0, 1:4].contiguous(), element).tolist()
        assert got == [lower, lower + lower % 2, lower + 1]


def f32(value: float, low: float, high: float) -> float:
    """The fp32 neighbour of a midpoint, or the midpoint."""
    middle = torch.tensor((low + high) / 2)
    if value == (low + high) / 2:
        return middle.item()
    return torch.nextafter(middle, torch.tensor(low if value < (low + high) / 2 else high)).item()


ADVERSARIAL = {
    "zeros": [0.0, -0.0] * 16,
    "one-subnormal": [SMALLEST] + [0.0] * 31,
    "subnormals": [SMALLEST * k * (-1) ** k for k in range(32)],
    "largest-subnormals": [2.0**-126 - SMALLEST * k for k in range(32)],
    "smallest-normals": [2.0**-126 * (1 + k / 32) for k in range(32)],
    "scale-just-clamped": [2.0**-119, 2.0**-120, 2.0**-128, 2.0**-137, -(2.0**-136), 1.5 * 2.0**-136],
    "largest-fp32": [3.4028234663852886e38, -3.4e38, 1.75 * 2.0**127, 1.8125 * 2.0**127, 1.0, SMALLEST],
    "powers-of-two": [2.0**k for k in range(-20, 12)],
    "negative-powers": [-(2.0**k) for k in range(-140, -108)],
    "saturating": [1.99, 1.76, 1.75, 1.8124, 1.8126, 1.9374, 1.9376, -1.9999999],
    "exactly-largest": [448.0, 449.0, 464.0, 465.0, 1.0],
    "mixed-magnitudes": [1e30, 1e20, 1e10, 1.0, 1e-10, 1e-20, 1e-30, 1e-40, -1e29, -3e27, 0.0, -0.0],
    "infinity": [1.0, math.inf, 2.0],
    "minus-infinity": [-math.inf] + [0.0] * 31,
    "nan": [math.nan] + [1.0] * 31,
    "nan-and-infinity": [1.0, math.nan, math.inf, -math.inf],
    "one-element": [3.14159],
}


@BOTH
@ROUNDINGS
@pytest.mark.parametrize("case", ADVERSARIAL)
def test_adversarial_blocks(case: str, name: str, rounding: str) -> None:
    assert_like_reference(ADVERSARIAL[case], name, rounding)


@BOTH
@ROUNDINGS
@settings(max_examples=60)
@given(values=st.lists(st.floats(width=32), min_size=1, max_size=BLOCK))
def test_any_block(name: str, rounding: str, values: list[float]) -> None:
    assert_like_reference(values, name, rounding)


@BOTH
@settings(max_examples=60)
@given(values=st.lists(st.integers(-(2**23), 2**23), min_size=BLOCK, max_size=BLOCK), exponent=st.integers(-140, 100))
def test_blocks_of_one_magnitude(name: str, values: list[int], exponent: int) -> None:
    assert_like_reference([math.ldexp(v, exponent - 23) for v in values], name, "down")


@BOTH
def test_rounding_is_that_of_pytorchs_casts(name: str) -> None:
    element, form = FORMATS[name]
    values = torch.randn(4096, BLOCK, generator=torch.Generator().manual_seed(1)) * 2.0 ** (form.emax - 4)
    values[:, 0] = element.largest  # scale 1
    values.clamp_(-element.largest, element.largest)
    got = quantise(values, element)
    assert got.scales.unique().tolist() == [127]
    assert got.elements.flatten(1).equal(values.to(element.dtype).float())


@pytest.mark.skipif(not hasattr(torch, "float8_e8m0fnu"), reason="this PyTorch has no E8M0")
def test_scales_are_pytorchs_e8m0() -> None:
    block = torch.tensor([2.0**k for k in range(-119, 128)] + [math.nan])[:, None].repeat(1, BLOCK)
    got = quantise(block, E4M3)
    as_float = got.scales.to(torch.uint8).view(torch.float8_e8m0fnu).float().flatten()
    expected = torch.tensor([2.0 ** (k - 8) for k in range(-119, 128)] + [math.nan])
    torch.testing.assert_close(as_float, expected, rtol=0, atol=0, equal_nan=True)
    assert got.scales[-1].item() == NAN_SCALE


@BOTH
@ROUNDINGS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_result_fits_the_type_it_came_from(name: str, rounding: str, dtype: torch.dtype) -> None:
    element, _ = FORMATS[name]
    generator = torch.Generator().manual_seed(2)
    spread = torch.randint(-140, 125, (512, 1), generator=generator)
    values = torch.ldexp(torch.randn(512, 64, generator=generator), spread).to(dtype)
    exact = quantise(values, element, scale_rounding=rounding).dequantise()
    assert round_trip(values, element, scale_rounding=rounding).float().equal(exact)


@BOTH
def test_error_is_half_a_step_unless_saturated(name: str) -> None:
    element, _ = FORMATS[name]
    values = torch.randn(256, BLOCK, generator=torch.Generator().manual_seed(3))
    step = 2.0 ** -(element.mantissa + 1)
    for rounding, limit in (("up", step), ("down", 1 - 1.75 / 2)):
        error = (round_trip(values, element, scale_rounding=rounding) / values - 1).abs()
        normal = values.abs() > values.abs().amax(1, keepdim=True) * 2.0**-12
        assert step / 2 < error[normal].max() <= limit
    clipped = round_trip(values, element, scale_rounding="down").abs().amax(1)
    assert (clipped <= round_trip(values, element, scale_rounding="up").abs().amax(1)).all()


@BOTH
def test_twice_is_once(name: str) -> None:
    element, _ = FORMATS[name]
    once = round_trip(torch.randn(64, 96, generator=torch.Generator().manual_seed(4)), element)
    assert round_trip(once, element).equal(once)


@BOTH
@pytest.mark.parametrize("shape", [(64, 96), (3, 64, 33), (2, 1, 5), (31, 1), (32, 7, 2)])
def test_blocks_follow_the_dimension(name: str, shape: tuple[int, ...]) -> None:
    element, _ = FORMATS[name]
    values = torch.randn(shape, generator=torch.Generator().manual_seed(5)).exp()
    for dim in range(-len(shape), len(shape)):
        moved = round_trip(values.movedim(dim, -1).contiguous(), element).movedim(-1, dim)
        assert round_trip(values, element, dim).equal(moved)
    # The parts of a dimension are as the whole, where they are whole blocks.
    if shape[0] % 64 == 0:
        parts = [round_trip(part, element, 0) for part in values.chunk(2)]
        assert torch.cat(parts).equal(round_trip(values, element, 0))
