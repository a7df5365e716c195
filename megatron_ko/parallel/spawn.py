"""Starts ranks on this machine.

On a CPU, ranks are forked after torch and megatron-core are imported, so that N ranks start as fast as one. A fork
keeps only the calling thread, so nothing may have used several threads in this process before. CUDA does not survive a
fork once any package has even queried it, so there each rank is a new interpreter.
"""

import ctypes
import multiprocessing
import os
import pickle
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import FrameType
from typing import Any

import torch.distributed as dist

from megatron_ko.errors import EXIT_DONE, LaunchError
from megatron_ko.machine.place import Place
from megatron_ko.parallel.platform import get_platform
from megatron_ko.parallel.rank import EXIT_CRASH, Ending, join_world, run_rank, take_place

Target = Callable[..., int | None]

_FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
_PR_SET_PDEATHSIG = 1
_LOOPBACK = "127.0.0.1"


@dataclass(frozen=True)
class _World:
    """What every rank is given.

    Attributes:
        target: the function that it runs.
        args: arguments of the function.
        size: number of ranks.
        listener: a bound socket, on which rank 0 serves the store.
        reports: folder with one file per rank, which says how it ended.
        parent: process that started the ranks.
        threads: CPU threads of one rank; None: an even share of the cores.
        timeout_s: time limit of a collective.
    """

    target: Target
    args: tuple[Any, ...]
    size: int
    listener: socket.socket
    reports: Path
    parent: int
    threads: int | None
    timeout_s: float


def run_ranks(
    target: Target,
    world_size: int,
    args: tuple[Any, ...] = (),
    *,
    threads: int | None = None,
    timeout_s: float = 600.0,
    grace_s: float = 5.0,
) -> int:
    """Start ``world_size`` ranks on this machine, run ``target(*args)`` in each, and wait for all of them.

    SIGTERM, SIGINT and SIGUSR1 to this process are forwarded to every rank. If a rank fails, the others are stopped.
    Ranks end when this process ends, however it ends.

    Args:
        target: function that a rank runs; its return value (None: 0) is the rank's exit code.
        world_size: number of ranks.
        args: arguments of the target. On CUDA both are pickled; on a CPU they are inherited.
        threads: CPU threads of one rank; None: an even share of the cores.
        timeout_s: seconds after which a collective that does not complete is an error.
        grace_s: seconds between SIGTERM and SIGKILL for ranks that are stopped because another one failed.

    Returns:
        0, or the exit code of the rank whose error is printed: the lowest rank with a KoError (2), else one killed by
        a signal (128 + its number), else the first that crashed (1); or the lowest rank's code that is not 0.

    Raises:
        LaunchError: this process already has a process group.
    """
    platform = get_platform()
    if dist.is_initialized():  # ranks would inherit a process group without its threads, and wait forever
        raise LaunchError(
            "ranks cannot be started from a process that has a process group itself",
            got="an initialised torch.distributed",
            remedy="start them from a separate process, or destroy the process group first",
        )
    with ExitStack() as stack:
        listener = stack.enter_context(socket.create_server((_LOOPBACK, 0), backlog=max(128, world_size)))
        reports = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="megatron-ko-")))
        world = _World(target, args, world_size, listener, reports, os.getpid(), threads, timeout_s)
        context = multiprocessing.get_context("fork" if platform.may_fork else "spawn")
        ranks: list[BaseProcess] = [
            context.Process(target=_rank_main, args=(world, rank), name=f"rank {rank}")  # type: ignore[attr-defined]
            for rank in range(world_size)
        ]
        with _forwarding(ranks):
            stack.callback(_kill, ranks)
            # It takes seconds until a new interpreter leaves the terminal's process group; until then, Ctrl-C waits.
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
            try:
                for process in ranks:
                    process.start()
            finally:
                signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
            listener.close()
            stopped = _watch(ranks, reports, grace_s)
        return _tell([_ending(process, reports / process.name) for process in ranks], stopped)


def _rank_main(world: _World, rank: int) -> None:
    _die_with(world.parent)
    os.setpgid(0, 0)  # so that Ctrl-C arrives only once, through the parent
    for number in _FORWARDED:
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    place = Place(rank, rank, world.size, world.size)
    ending = run_rank(world.target, world.args, place, lambda: _join(place, world))
    report = world.reports / f"rank {rank}"
    unfinished = report.with_suffix(".unfinished")  # a rank may be stopped while it writes
    unfinished.write_bytes(pickle.dumps(ending))
    unfinished.rename(report)
    sys.exit(ending.exit_code)


def _kill(ranks: list[BaseProcess]) -> None:
    for process in ranks:
        if process.pid is not None and process.is_alive():
            process.kill()
            process.join()


def _join(place: Place, world: _World) -> None:
    take_place(place, world.threads)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo" if sys.platform == "linux" else "lo0")
    first = place.rank == 0
    listener = world.listener
    port = listener.getsockname()[1]
    # The parent has bound the port, so no other process can take it; rank 0 serves on the parent's socket.
    store = dist.TCPStore(
        _LOOPBACK,
        port,
        place.world_size,
        is_master=first,
        wait_for_workers=False,
        master_listen_fd=listener.detach() if first else None,
    )
    if not first:
        listener.close()
    join_world(store, place, world.timeout_s)


def _die_with(parent: int) -> None:
    if sys.platform != "linux":
        return
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # the parent died before the request
        os.kill(os.getpid(), signal.SIGKILL)


@contextmanager
def _forwarding(ranks: list[BaseProcess]) -> Iterator[None]:
    def forward(number: int, frame: FrameType | None) -> None:
        for process in ranks:
            if process.pid is not None and process.exitcode is None:
                os.kill(process.pid, number)

    before = {number: signal.signal(number, forward) for number in _FORWARDED}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _watch(ranks: list[BaseProcess], reports: Path, grace_s: float) -> set[int]:
    """Wait for all ranks; if one fails, stop the others. Returns the ranks that were stopped."""
    running = set(range(len(ranks)))
    stopped: set[int] = set()
    deadline: float | None = None
    while running:
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        wait([ranks[rank].sentinel for rank in running], timeout=left)
        ended = {rank for rank in running if ranks[rank].exitcode is not None}
        running -= ended
        if deadline is None and any(_ending(ranks[rank], reports / ranks[rank].name).failed for rank in ended):
            deadline = time.monotonic() + grace_s
            stopped = set(running)
            for rank in running:
                ranks[rank].terminate()
        elif deadline is not None and time.monotonic() >= deadline:
            for rank in running:
                ranks[rank].kill()
    return stopped


def _ending(process: BaseProcess, report: Path) -> Ending:
    process.join()
    code = process.exitcode or 0
    if report.exists():
        ending: Ending = pickle.loads(report.read_bytes())
        return ending
    if code < 0:
        return Ending(128 - code, f"{process.name} was killed by {signal.Signals(-code).name}")
    return Ending(code or EXIT_CRASH, f"{process.name} exited with code {code} and without a message")


def _tell(endings: list[Ending], stopped: set[int]) -> int:
    """Print the error that caused the others, once, and return the overall exit code."""
    failed = [rank for rank, ending in enumerate(endings) if ending.failed]
    if not failed:
        return next((ending.exit_code for ending in endings if ending.exit_code), EXIT_DONE)

    def cause(rank: int) -> tuple[int, float]:
        if endings[rank].repairable:
            return 0, rank
        if endings[rank].time == 0.0:  # killed, not crashed: this is the cause, unless this process killed it
            return (3 if rank in stopped else 1), rank
        return 2, endings[rank].time

    first = endings[min(failed, key=cause)]
    print(f"megatron-ko: {first.message}" if first.repairable else first.message, file=sys.stderr, flush=True)
    return first.exit_code
