"""Two ranks: tensor, sequence, pipeline, expert and context parallelism of Transformer Engine's layers."""

import pytest
from cases import TWO_RANKS
from engine import assert_alike


@pytest.mark.parametrize("name", TWO_RANKS)
def test_two_ranks_train_like_portable_layers(name: str) -> None:
    assert_alike(TWO_RANKS[name], world_size=2, steps=2)
