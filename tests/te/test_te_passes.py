"""Forward and backward: Transformer Engine's modules give the loss and the gradients of portable layers."""

import pytest
from cases import PASSES
from engine import assert_alike


@pytest.mark.parametrize("name", PASSES)
def test_gradients_are_those_of_portable_layers(name: str) -> None:
    assert_alike(PASSES[name], world_size=1, steps=1)
