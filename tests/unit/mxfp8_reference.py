"""MXFP8 written down from the specification in exact fractions, one number at a time: slow, and easy to check by eye.

Sections are those of the OCP Microscaling Formats (MX) Specification v1.0.
"""

import bisect
import functools
import math
from dataclasses import dataclass
from fractions import Fraction

NAN = math.nan


@dataclass(frozen=True)
class Format:
    """Sign, exponent and mantissa bits of an element (5.3.1), and the largest finite value that it names."""

    exponent_bits: int
    mantissa_bits: int
    largest: Fraction

    @property
    def bias(self) -> int:
        return 2 ** (self.exponent_bits - 1) - 1

    @property
    def emax(self) -> int:
        """Exponent of the largest power of two that the format has."""
        return math.floor(math.log2(self.largest))

    def decode(self, code: int) -> float:
        """Value of an 8-bit code. Zero keeps its sign."""
        sign = -1.0 if code >> 7 else 1.0
        field = (code >> self.mantissa_bits) & (2**self.exponent_bits - 1)
        fraction = Fraction(code & (2**self.mantissa_bits - 1), 2**self.mantissa_bits)
        if field == 0:
            return math.copysign(float(fraction * Fraction(2) ** (1 - self.bias)), sign)
        magnitude = (1 + fraction) * Fraction(2) ** (field - self.bias)
        if magnitude <= self.largest:
            return sign * float(magnitude)
        # Above the largest: E5M2 has an infinity at mantissa 0, everything else is NaN.
        return sign * math.inf if self.exponent_bits == 5 and fraction == 0 else NAN

    def encode(self, value: Fraction, negative: bool) -> int:
        """Code of the nearest finite value; of two equally near ones the one with an even code; largest if above it."""
        above = bisect.bisect(magnitudes(self), abs(value), key=lambda pair: pair[0])
        neighbours = magnitudes(self)[above - 1 : above + 1]
        _, code = min(neighbours, key=lambda pair: (abs(pair[0] - abs(value)), pair[1] % 2))
        return code | (negative << 7)


@functools.cache
def magnitudes(form: Format) -> list[tuple[Fraction, int]]:
    """Every finite value that is not negative, with its code, ascending."""
    return [(Fraction(form.decode(code)), code) for code in range(128) if math.isfinite(form.decode(code))]


E4M3 = Format(4, 3, Fraction(448))
E5M2 = Format(5, 2, Fraction(57344))


def convert(block: list[float], form: Format, up: bool = False) -> tuple[int, list[int] | None]:
    """Scale code and element codes of one block (6.3); no element codes where the scale is NaN."""
    if not all(math.isfinite(value) for value in block):
        return 255, None
    largest = max(abs(Fraction(value)) for value in block)
    exponent = -127
    if largest:
        exponent = floor_log2(largest) - form.emax
        if up and largest > form.largest * Fraction(2) ** exponent:
            exponent += 1
    exponent = max(-127, min(127, exponent))
    scale = Fraction(2) ** exponent
    return exponent + 127, [form.encode(Fraction(v) / scale, math.copysign(1.0, v) < 0) for v in block]


def floor_log2(value: Fraction) -> int:
    """Exponent of the largest power of two that is not above a positive number."""
    exponent = value.numerator.bit_length() - value.denominator.bit_length()
    return exponent if Fraction(2) ** exponent <= value else exponent - 1


def restore(scale: int, codes: list[int] | None, form: Format, count: int) -> list[float]:
    """Values of a block (5.4.1): all of them NaN when the scale is."""
    if codes is None:
        return [NAN] * count
    return [math.ldexp(form.decode(code), scale - 127) for code in codes]
