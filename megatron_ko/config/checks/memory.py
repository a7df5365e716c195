"""Recomputation, offloading and overlap: what megatron-core accepts together."""

from collections.abc import Iterator

from megatron_ko.config.problems import Problem
from megatron_ko.config.run import RunConfig


def check_memory(config: RunConfig) -> Iterator[Problem]:
    """Recomputation, offloading and overlap: what megatron-core accepts together."""
    yield from ()
