"""Axes: a range that is robust to outliers, round ticks, and short labels for numbers."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from megatron_ko.report.store import Column

_PREFIXES = ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k"))


@dataclass(frozen=True, kw_only=True)
class Axis:
    """A range of values mapped to the interval from 0 to 1.

    Attributes:
        low, high: ends of the range.
        log: whether the scale is logarithmic.
    """

    low: float
    high: float
    log: bool = False

    def place(self, values: Column) -> Column:
        """Positions of values; values outside the range are moved to its ends."""
        inside = np.clip(values, self.low, self.high)
        if self.log:
            return (np.log(inside) - math.log(self.low)) / (math.log(self.high) - math.log(self.low))
        return (inside - self.low) / (self.high - self.low)

    def ticks(self, wanted: int) -> list[float]:
        """Round values in the range, about as many as wanted."""
        if self.log:
            return _log_ticks(self.low, self.high, wanted)
        step = round_step((self.high - self.low) / wanted)
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [number * step for number in range(first, last + 1)]


def fit_axis(values: Column, *, from_zero: bool = False, log: bool = False) -> Axis:
    """The axis for all values, except that a few outliers must not squash the rest.

    The top is 1.25 times the 99th percentile (measured from the smallest value) if the largest value is more than two
    and a half times as far away.
    """
    known = values[np.isfinite(values) & ((values > 0) if log else np.isfinite(values))]
    if not len(known):
        return Axis(low=1.0, high=10.0, log=True) if log else Axis(low=0.0, high=1.0)
    low, high = float(known.min()), float(known.max())
    if log:
        return Axis(low=low / 1.15, high=high * 1.15, log=True)
    most = float(np.quantile(known, 0.99))
    if high - low > 2.5 * (most - low) > 0:
        high = low + 1.25 * (most - low)
    low = min(0.0, low) if from_zero else low
    margin = 0.06 * (high - low) or 0.05 * abs(high) or 1.0
    return Axis(low=low if from_zero else low - margin, high=high + margin)


def round_step(step: float) -> float:
    """The smallest 1, 2, 2.5 or 5 times a power of ten that is at least ``step``."""
    power = 10.0 ** math.floor(math.log10(step))
    return next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= step * (1 - 1e-9))


def _log_ticks(low: float, high: float, wanted: int) -> list[float]:
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 5, 7)):
        ticks = [f * 10.0**d for d in decades for f in factors if low <= f * 10.0**d <= high]
        if len(ticks) >= min(3, wanted):
            break
    if len(ticks) < 2:
        return Axis(low=low, high=high).ticks(wanted)
    return ticks[:: max(1, math.ceil(len(ticks) / (wanted + 2)))]


def labels(ticks: Sequence[float]) -> list[str]:
    """Short labels for ticks, with as many digits as are needed to distinguish them."""
    for digits in (3, 4, 5, 6):
        found = [short(tick, digits) for tick in ticks]
        if len(set(found)) == len(found):
            break
    return found if ticks else []


def short(value: float, digits: int = 3) -> str:
    """A number in short form: 1.31B, 250k, 0.003, 3e-05."""
    if not value or not math.isfinite(value):
        return "0" if value == 0 else "–"
    for size, prefix in _PREFIXES:
        if abs(value) >= size * (1 - 0.5 * 10.0**-digits):
            return f"{value / size:.{digits}g}{prefix}"
    return f"{value:.{digits}g}"
