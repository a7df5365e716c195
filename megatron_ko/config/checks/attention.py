"""Windows, documents, and sequences that are split over ranks."""

from collections.abc import Iterator

from megatron_ko.config.problems import Problem
from megatron_ko.config.run import RunConfig


def check_attention(config: RunConfig) -> Iterator[Problem]:
    """Windows, documents, and sequences that are split over ranks."""
    yield from ()
