"""A pool of processes that end with their parent, and whose deaths the parent notices."""

import ctypes
import os
import pickle
import signal
import sys
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, nullcontext
from multiprocessing import get_context
from types import ModuleType
from typing import Any, TypeVar

from megatron_ko.errors import DataError

_PR_SET_PDEATHSIG = 1
# Items in work or waiting for their turn, per worker: enough to keep all busy, few enough to bound the memory.
_IN_FLIGHT = 2

Item = TypeVar("Item")
Result = TypeVar("Result")


def map_unordered(
    function: Callable[[Item], Result], items: Iterable[Item], workers: int
) -> Generator[Result, None, None]:
    """The results of ``function`` for all items, in the order in which they are ready.

    ``function`` is sent to every worker once: what it caches in itself lives as long as the worker. With one worker,
    this process does the work. Close the iterator (``contextlib.closing``) to stop the workers early.

    Raises:
        DataError: a worker died.
    """
    if workers == 1:
        yield from map(function, items)
        return
    pool = ProcessPoolExecutor(
        workers, mp_context=get_context("spawn"), initializer=_start_worker, initargs=(function, os.getpid())
    )
    running: set[Future[Result]] = set()
    of_main = b"__main__" in pickle.dumps(function)
    try:
        for item in items:
            with nullcontext() if of_main else _without_main(), _without_interrupts():
                running.add(pool.submit(_run, item))
            if len(running) >= workers * _IN_FLIGHT:
                done, running = wait(running, return_when=FIRST_COMPLETED)
                yield from (future.result() for future in done)
        while running:
            done, running = wait(running, return_when=FIRST_COMPLETED)
            yield from (future.result() for future in done)
    except BrokenProcessPool as error:
        raise DataError(
            "a worker process died",
            got=str(error),
            expected="all workers alive to the end",
            remedy="most often the machine ran out of memory: use fewer --workers; "
            "started again, the command goes on from what is done",
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


@contextmanager
def _without_main() -> Iterator[None]:
    """Spare new workers the import of the main module: that is the whole command line, and they need nothing of it."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


@contextmanager
def _without_interrupts() -> Iterator[None]:
    """Let only the parent handle Ctrl-C: new workers inherit the blocked signal, the parent receives it afterwards."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


_function: Callable[[Any], Any] | None = None


def _start_worker(function: Callable[[Any], Any], parent: int) -> None:
    global _function
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit("the parent process is gone")
    _function = function


def _run(item: Any) -> Any:
    assert _function is not None
    return _function(item)
