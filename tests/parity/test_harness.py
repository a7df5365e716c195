"""Looking at gradients changes nothing in what follows, in bf16 too, where they are of another type than weights."""

import pytest
from harness import tiny_config, train_under


def test_gradients_after_the_first_step_are_those_of_training() -> None:
    fp32, bf16 = (train_under(tiny_config(precision={"dtype": dtype}), 1, steps=3) for dtype in ("fp32", "bf16"))
    assert bf16.grad_norms == pytest.approx(fp32.grad_norms, rel=5e-2)
    assert bf16.losses == pytest.approx(fp32.losses, rel=1e-3)
