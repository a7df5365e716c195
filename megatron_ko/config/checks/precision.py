"""Number formats: do they fit the dimensions and the layers?"""

from collections.abc import Iterator

from megatron_ko.config.problems import Problem
from megatron_ko.config.run import RunConfig


def check_precision(config: RunConfig) -> Iterator[Problem]:
    """Number formats: do they fit the dimensions and the layers?"""
    yield from ()
