"""Makes long series drawable without hiding events: smoothing, and reduction that keeps all extremes."""

import numpy as np
from numpy.typing import NDArray

from megatron_ko.report.store import Column


def keep_extremes(x: Column, y: Column, buckets: int) -> NDArray[np.int64]:
    """Indices of a reduced series: the first, smallest, largest and last finite value of every bucket along x.

    A single spike in a million steps is therefore still drawn, and the result has at most ``4 * buckets`` points.

    Args:
        x: increasing positions.
        y: values; non-finite ones are left out.
        buckets: number of equal parts into which the range of x is divided.
    """
    known: NDArray[np.int64] = np.flatnonzero(np.isfinite(y))
    if len(known) <= 4 * buckets:
        return known
    positions, values = x[known], y[known]
    width = (positions[-1] - positions[0]) / buckets or 1.0
    bucket = np.minimum(((positions - positions[0]) / width).astype(np.int64), buckets - 1)
    starts = np.flatnonzero(np.diff(bucket, prepend=-1))
    ends = np.append(starts[1:], len(bucket)) - 1
    # Sorted by (bucket, value): the first entry of a bucket is its smallest, the last its largest.
    order = np.lexsort((values, bucket))
    chosen = np.unique(np.concatenate([starts, ends, order[starts], order[ends]]))
    reduced: NDArray[np.int64] = known[chosen]
    return reduced


def smooth(y: Column, span: int) -> Column:
    """Moving average over the ``span`` steps around each step, shorter at the ends; NaN if none of them is known.

    It is centred, so the curve does not lag behind the values as an exponential average would.

    Args:
        y: values, one per step; non-finite ones do not count.
        span: steps in the window; an even number is increased by one.
    """
    known = np.isfinite(y)
    totals = np.concatenate([[0.0], np.cumsum(np.where(known, y, 0.0))])
    counts = np.concatenate([[0], np.cumsum(known)])
    middle = np.arange(len(y))
    first, end = np.maximum(middle - span // 2, 0), np.minimum(middle + span // 2 + 1, len(y))
    number = counts[end] - counts[first]
    return np.where(number > 0, (totals[end] - totals[first]) / np.maximum(number, 1), np.nan)
