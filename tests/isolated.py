"""Calling a function in a process of its own."""

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


def isolated(function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """The result of a call, or its exception, from a forked child.

    What makes a world of one rank, or starts threads, must not run where tests fork ranks.
    """
    with ProcessPoolExecutor(1, mp_context=get_context("fork")) as pool:
        return pool.submit(function, *args, **kwargs).result()
