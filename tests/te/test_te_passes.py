"""Forward and backward: Transformer Engine's modules give the loss and the gradients of portable layers."""

from functools import cache

import pytest
from cases import PASSES
from engine import Both, differences, run_both


@cache
def passes() -> dict[str, Both | str]:
    return run_both(PASSES, 1, 1)


@pytest.mark.parametrize("name", PASSES)
def test_gradients_are_those_of_portable_layers(name: str) -> None:
    case, both = PASSES[name], passes()[name]
    assert isinstance(both, Both), both
    apart = differences(both.engine.gradients, both.portable.gradients)
    worst = max(apart, key=lambda key: apart[key])
    print(f"{name}: gradients apart by {min(apart.values()):.1e} to {apart[worst]:.1e} ({worst})")
    assert apart[worst] < case.gradients, worst
    assert min(apart.values()) >= case.least
    assert both.engine.losses == pytest.approx(both.portable.losses, rel=case.losses)
    assert set(case.calls) <= both.calls.keys(), both.calls
    assert not set(case.never) & both.calls.keys()
