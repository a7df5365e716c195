"""Whether logits are as close to an fp64 run of the model as fp32 can be: its own fp32 run tells how close that is.

A limit in absolute numbers would be wrong for most models: the logits of one reach 1, those of another 40, and fp32
rounds both to seven digits. A wrong weight or constant moves them by far more than the order of sums does: of
SmolLM2-135M, whose own fp32 is 1.1e-5 from fp64 on average, any projection scaled by 1.001 gives 5e-4 or more.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from megatron_ko.convert.gates import Gate, LogitGate

# How many times as far from fp64 as the source's own fp32: on average, and at the worst number of all.
MEAN_FACTOR, WORST_FACTOR = 4.0, 8.0
# Of the largest logit: a model so small that its own run hardly rounds is not held to that.
_ROUNDING = 2.0**-22


@dataclass(frozen=True)
class Distance:
    """How far logits are from those of an fp64 run.

    Attributes:
        mean: root of the mean square.
        worst: largest difference.
        numbers: how many logits.
        top1: positions whose most probable token is the same.
        positions: all positions.
        scale: largest logit.
    """

    mean: float
    worst: float
    numbers: int
    top1: int
    positions: int
    scale: float


def distance(found: Sequence[Tensor], exact: Sequence[Tensor]) -> Distance:
    """Compare logits [b, s, v], sample by sample. What is not finite is infinitely far."""
    squares, worst, numbers, same, positions, scale = 0.0, 0.0, 0, 0, 0, 0.0
    for one, other in zip(found, exact, strict=True):
        for row, target in zip(one.flatten(0, 1).split(64), other.flatten(0, 1).split(64), strict=True):
            difference = (row - target).double().nan_to_num(torch.inf, torch.inf, torch.inf)
            squares += float(difference.square().sum())
            worst = max(worst, float(difference.abs().max()))
            scale = max(scale, float(target.abs().max()))
            same += int((row.argmax(-1) == target.argmax(-1)).sum())
            positions += len(row)
            numbers += row.numel()
    return Distance(math.sqrt(squares / numbers), worst, numbers, same, positions, scale)


def together(parts: Sequence[Distance]) -> Distance:
    """The distance over several samples."""
    numbers = sum(part.numbers for part in parts)
    return Distance(
        math.sqrt(sum(part.mean**2 * part.numbers for part in parts) / numbers),
        max(part.worst for part in parts),
        numbers,
        sum(part.top1 for part in parts),
        sum(part.positions for part in parts),
        max(part.scale for part in parts),
    )


def as_logit_gate(found: Distance, own: Distance) -> LogitGate:
    """For the record: how far the new model is from fp64, and how far the source's own fp32."""
    return LogitGate(found.worst, found.top1 / found.positions, found.positions, found.mean, own.mean, own.worst)


def closeness_gate(name: str, found: Distance, own: Distance) -> Gate:
    """The new model's fp32 is no further from fp64 than the source's own fp32, times a factor.

    Args:
        name: of the gate.
        found: of the new model.
        own: of the source.
    """
    least = _ROUNDING * found.scale
    mean, worst = found.mean / max(own.mean, least), found.worst / max(own.worst, least)
    ok = mean <= MEAN_FACTOR and worst <= WORST_FACTOR
    top1 = found.top1 / found.positions
    said = (
        f"{found.mean:.1e} from fp64 on average, {mean:.1f} of {MEAN_FACTOR:g} times the source's own fp32; "
        f"largest {found.worst:.1e}, {worst:.1f} of {WORST_FACTOR:g} times; {top1:.1%} equal top tokens"
    )
    return Gate(name, found.positions, ok, said)
