"""Steps of training: Transformer Engine's layers and its Adam give the losses, norms and gradients of portable ones."""

import pytest
from cases import TRAINED
from engine import assert_alike


@pytest.mark.parametrize("name", TRAINED)
def test_losses_are_those_of_portable_layers(name: str) -> None:
    assert_alike(TRAINED[name], world_size=1, steps=4)
