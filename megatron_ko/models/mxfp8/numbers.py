"""MXFP8 numbers on any device: 8-bit floats, scaled by one power of two per 32 consecutive values.

OCP Microscaling Formats (MX) Specification v1.0: element formats in 5.3.1, the scale E8M0 in 5.4.1, conversion in 6.3.
Everything works on the bits of fp32 numbers, without tables and loops, and gives the same bits on every device.
"""

from dataclasses import dataclass
from typing import Literal

import torch

BLOCK = 32
NAN_SCALE = 255
ScaleRounding = Literal["down", "up"]
_EXPONENT_MASK = 0x7F800000  # of an fp32 number; also its infinity
_FP32_MANTISSA = 23
# The largest value of both formats is 1.75 times a power of two. Adding this constant to the bits of a maximum carries
# into the exponent exactly if the significand is above 1.75.
_ABOVE_LARGEST = (1 << _FP32_MANTISSA) - (3 << (_FP32_MANTISSA - 2)) - 1
_HALF_SMALLEST_NORMAL = 1 << (_FP32_MANTISSA - 1)  # bits of 2^-127


@dataclass(frozen=True)
class ElementFormat:
    """An 8-bit float.

    Attributes:
        name: its name in the specification.
        largest: largest finite value.
        largest_exponent: exponent of that value, ``emax`` in the specification.
        smallest_exponent: exponent of the smallest normal value; below it values are evenly spaced.
        mantissa: bits after the leading one.
        dtype: PyTorch's type with the same codes.
    """

    name: str
    largest: float
    largest_exponent: int
    smallest_exponent: int
    mantissa: int
    dtype: torch.dtype


E4M3 = ElementFormat("E4M3", 448.0, 8, -6, 3, torch.float8_e4m3fn)
E5M2 = ElementFormat("E5M2", 57344.0, 15, -14, 2, torch.float8_e5m2)


@dataclass(frozen=True)
class Blocks:
    """A tensor in MXFP8; ``elements`` times ``2^(scales - 127)`` is its value.

    Attributes:
        elements: fp32 numbers of the element format, [..., blocks, 32, ...]: the blocked dimension is split.
        scales: E8M0 codes as int32, in the shape of ``elements`` with 1 in place of 32; 255 is NaN,
            whatever the elements are.
        dim: position of the 32 in ``elements``.
        length: size of the blocked dimension before padding.
    """

    elements: torch.Tensor
    scales: torch.Tensor
    dim: int
    length: int

    def dequantise(self) -> torch.Tensor:
        """The values as an fp32 tensor of the original shape; NaN wherever the scale is NaN."""
        bits = (self.scales << _FP32_MANTISSA).clamp_(min=_HALF_SMALLEST_NORMAL)
        scale = bits.view(torch.float32).masked_fill_(self.scales == NAN_SCALE, torch.nan)
        values = (self.elements * scale).flatten(self.dim - 1, self.dim)
        return values.narrow(self.dim - 1, 0, self.length)


def quantise(
    values: torch.Tensor, element: ElementFormat, dim: int = -1, scale_rounding: ScaleRounding = "up"
) -> Blocks:
    """Convert a tensor to MXFP8, in blocks of 32 consecutive elements along one dimension (specification, 6.3).

    The scale is 2^(floor(log2(largest magnitude)) - emax), kept in E8M0's range, or twice that (``scale_rounding``).
    Elements are rounded to nearest, ties to even, and saturate. Where the specification leaves a choice, a block with
    an infinity or a NaN becomes NaN as a whole, so that it is noticed (Transformer Engine limits it to one element),
    and a block of zeros has the smallest scale.

    Args:
        values: floating-point numbers.
        element: format of the elements.
        dim: the dimension of the blocks, which a matrix product sums over. An incomplete last block is padded with
            zeros.
        scale_rounding: "up" doubles the scale if the largest magnitude would saturate, as Transformer Engine does on
            Blackwell; "down" follows the specification's text: magnitudes above 1.75 times a power of two saturate.
    """
    dim = dim % values.dim()
    length = values.shape[dim]
    blocks = _split(values.float(), dim)
    dim += 1
    largest = blocks.abs().amax(dim, keepdim=True).view(torch.int32)
    exponent = (largest + _ABOVE_LARGEST if scale_rounding == "up" else largest) >> _FP32_MANTISSA
    scales = (exponent - element.largest_exponent).clamp_(min=0)
    scales.masked_fill_(largest >= _EXPONENT_MASK, NAN_SCALE)
    inverse = ((2 * 127 - scales) << _FP32_MANTISSA).view(torch.float32)
    return Blocks(_round(blocks * inverse, element), scales, dim, length)


def round_trip(
    values: torch.Tensor, element: ElementFormat, dim: int = -1, scale_rounding: ScaleRounding = "up"
) -> torch.Tensor:
    """A tensor quantised to MXFP8 and back, in its own type. This is exact: fp32, bf16 and fp16 all have more bits than
    an element, and a value is never rounded to a finer grid than its original one.
    """
    return quantise(values, element, dim, scale_rounding).dequantise().to(values.dtype)


def _split(values: torch.Tensor, dim: int) -> torch.Tensor:
    """[..., n, ...] -> [..., blocks, 32, ...], padded with zeros at the end."""
    if missing := -values.shape[dim] % BLOCK:
        behind = [0, 0] * (values.dim() - 1 - dim) + [0, missing]
        values = torch.nn.functional.pad(values, behind)
    return values.unflatten(dim, (-1, BLOCK))


def _round(values: torch.Tensor, element: ElementFormat) -> torch.Tensor:
    """Round fp32 numbers to the element format: to nearest, ties to even, saturating, the sign of zero kept.

    Numbers with exponent e are 2^(e - mantissa) apart. In fp32, 1.5 * 2^(23 + e - mantissa) has neighbours at exactly
    this distance, so adding it rounds, and subtracting it again is exact.
    """
    lowest = (127 + element.smallest_exponent) << _FP32_MANTISSA
    raised = ((_FP32_MANTISSA - element.mantissa) << _FP32_MANTISSA) | (1 << (_FP32_MANTISSA - 1))
    shift = (values.view(torch.int32) & _EXPONENT_MASK).clamp_(min=lowest).add_(raised).view(torch.float32)
    return (values + shift).sub_(shift).clamp_(-element.largest, element.largest).copysign_(values)
