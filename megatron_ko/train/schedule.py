"""The learning rate of every step as a pure function, so there is no scheduler state to save or restore."""

import math

from megatron_ko.config import OptimConfig


def lr_at(step: int, optim: OptimConfig, total_steps: int) -> float:
    """Learning rate of an optimizer step.

    With n = step + 1 updates done after the step, W warm-up steps, T total steps and p in (0, 1] the completed share of
    the decay:

    - warm-up (n <= W): peak * n / W, so that no step has rate zero and step W has the peak;
    - cosine: floor + (peak - floor) * (1 + cos(pi p)) / 2 (Loshchilov and Hutter, 2017, arXiv:1608.03983);
    - linear: floor + (peak - floor) * (1 - p);
    - wsd: the peak until the last D steps, then floor + (peak - floor) * (1 - sqrt(p))
      (Haegele et al., 2024, arXiv:2405.18392);
    - constant: the peak.

    The same values as megatron-core's OptimizerParamScheduler after n updates.

    Args:
        step: number of the step, from 0.
        optim: peak, floor, warm-up and kind of schedule.
        total_steps: steps of the whole run; later steps keep the floor.
    """
    done = step + 1
    peak, floor = optim.lr, optim.lr * optim.min_lr_ratio
    if done <= optim.warmup_steps:
        return peak * (done / optim.warmup_steps)
    if optim.schedule == "constant":
        return peak
    if done >= total_steps:
        return floor
    if optim.schedule == "wsd":
        tail = decay_steps(optim, total_steps)
        if done <= total_steps - tail:
            return peak
        return floor + (peak - floor) * (1.0 - math.sqrt((done - (total_steps - tail)) / tail))
    share = (done - optim.warmup_steps) / (total_steps - optim.warmup_steps)
    left = 0.5 * (1.0 + math.cos(math.pi * share)) if optim.schedule == "cosine" else 1.0 - share
    return floor + (peak - floor) * left


def decay_steps(optim: OptimConfig, total_steps: int) -> int:
    """Length of the final decay of the wsd schedule: the configured one, or a fifth of the run (at least one step)."""
    if optim.decay_steps is not None:
        return optim.decay_steps
    return max(1, min(total_steps // 5, total_steps - optim.warmup_steps))


def describe(optim: OptimConfig, total_steps: int) -> str:
    """The schedule as one line, for example ``wsd: 100 warm-up, 700 stable, 200 decay steps, 3e-04 -> 3e-05``."""
    floor = optim.lr if optim.schedule == "constant" else optim.lr * optim.min_lr_ratio
    after = total_steps - optim.warmup_steps
    parts = [f"{optim.warmup_steps} warm-up"]
    if optim.schedule == "wsd":
        tail = decay_steps(optim, total_steps)
        parts += [f"{after - tail} stable", f"{tail} decay"]
    else:
        parts.append(f"{after} {'constant' if optim.schedule == 'constant' else 'decay'}")
    return f"{optim.schedule}: {', '.join(parts)} steps, peak {optim.lr:.3g} -> {floor:.3g}"
