"""Calling a function in a process of its own."""

import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


def isolated(function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """The result of a call, or its exception, from a forked child.

    What makes a world of one rank, or starts threads, must not run where tests fork ranks. The child has one core, and
    so computes with one thread: it cannot start a pool of OpenMP threads where its parent has one, and training a
    Unigram tokenizer leaves one behind.
    """
    with ProcessPoolExecutor(1, mp_context=get_context("fork"), initializer=_take_one_core) as pool:
        return pool.submit(function, *args, **kwargs).result()


def _take_one_core() -> None:
    if hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[os.getpid() % len(cores)]})
