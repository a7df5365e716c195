"""Mistakes in Transformer Engine's layers, made on purpose: the comparison with portable layers sees each of them."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import BF16, FP16, PASSES, Case, recipe
from engine import differences, kernels_run_here, run_both
from megatron.core.transformer import mlp
from stub import KERNELS

from megatron_ko.models import architectures, specs

Patch = pytest.MonkeyPatch


def of_engine_only(patch: Patch, owner: Any, name: str, wrong: Callable[..., Any]) -> None:
    """Replace a function where the layers are Transformer Engine's."""
    right = getattr(owner, name)
    patch.setattr(owner, name, lambda *args, **kw: (wrong if kernels_run_here() else right)(*args, **kw))


def swap_gate_and_up(patch: Patch) -> None:
    right = mlp.bias_swiglu_impl  # portable layers do not use it
    patch.setattr(mlp, "bias_swiglu_impl", lambda both, *rest: right(torch.cat(both.chunk(2, -1)[::-1], -1), *rest))


def drop_the_windows(patch: Patch) -> None:
    of_engine_only(patch, specs, "set_windows", lambda spec, windows: None)


def scale_scores_wrongly(patch: Patch) -> None:
    of_engine_only(patch, architectures, "softmax_scale", lambda rope, channels: 1 / channels)


def widen_the_window_by_one(patch: Patch) -> None:
    right = specs.set_windows

    def wrong(spec: Any, windows: Any) -> None:
        right(spec, [None if window is None else window + 1 for window in windows])

    of_engine_only(patch, specs, "set_windows", wrong)


def forget_the_norms_weight(patch: Patch) -> None:
    right = KERNELS["rmsnorm_bwd"]

    def wrong(*args: Any) -> Any:
        to_input, to_weight = right(*args)
        return to_input, torch.zeros_like(to_weight)

    patch.setitem(KERNELS, "rmsnorm_bwd", wrong)


def round_scales_down(patch: Patch) -> None:
    """In the emulation."""


MISTAKES: dict[str, tuple[Callable[[Patch], None], Case]] = {
    "gate and up": (swap_gate_and_up, PASSES["fp32"]),
    "no window": (drop_the_windows, PASSES["windows"]),
    "no window, fused": (drop_the_windows, PASSES["windows-fp16"]),
    "window + 1": (widen_the_window_by_one, PASSES["windows"]),
    "scale": (scale_scores_wrongly, PASSES["fp32"]),
    "scale, fused": (scale_scores_wrongly, Case({"precision": FP16}, gradients=2e-3)),
    "norm": (forget_the_norms_weight, Case({"precision": BF16}, gradients=3e-2)),
    "scales down": (
        round_scales_down,
        Case({"precision": recipe("mxfp8", "fp32", mxfp8={"emulate": True, "scale_rounding": "down"})}, 1e-6),
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_seen(mistake: str, monkeypatch: Patch) -> None:
    sabotage, case = MISTAKES[mistake]
    sabotage(monkeypatch)
    both = run_both(case)
    worst = max(differences(both.engine.gradients, both.portable.gradients).values())
    print(f"{mistake}: gradients apart by up to {worst:.1e}, allowed are {case.gradients:.0e}")
    assert worst > 3 * case.gradients
