"""Experts: do they fit the network, the router and the layout?"""

from collections.abc import Iterator

from megatron_ko.config.problems import Problem
from megatron_ko.config.run import RunConfig


def check_moe(config: RunConfig) -> Iterator[Problem]:
    """Experts: do they fit the network, the router and the layout?"""
    yield from ()
