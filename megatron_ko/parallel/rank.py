"""Runs one rank: set its device and threads, create the default group, run the target, and report how it ended."""

import os
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from megatron_ko.errors import EXIT_DONE, KoError, repairable
from megatron_ko.machine.place import Place, threads_per_rank
from megatron_ko.parallel.platform import get_platform

EXIT_CRASH = 1


@dataclass(frozen=True)
class Ending:
    """How a rank ended.

    Attributes:
        exit_code: exit code of its process.
        message: message for the user; empty if the rank returned normally.
        repairable: whether the user can fix it (a KoError); a traceback would only hide the message.
        time: ``time.monotonic()`` of the failure; the same clock for all processes of a machine.
    """

    exit_code: int
    message: str = ""
    repairable: bool = False
    time: float = 0.0

    @property
    def failed(self) -> bool:
        """Whether it ended with an exception; a returned exit code is not a failure."""
        return bool(self.message)


def run_rank(
    target: Callable[..., int | None], args: tuple[Any, ...], place: Place, join: Callable[[], None]
) -> Ending:
    """Call ``join``, then ``target(*args)``, in this process, and turn every exception into an ``Ending``."""
    try:
        join()
        code = target(*args)
        dist.destroy_process_group()
        return Ending(EXIT_DONE if code is None else code)
    except KoError as error:
        return Ending(error.exit_code, str(error), repairable=True, time=time.monotonic())
    except SystemExit as stop:
        return Ending(stop.code if isinstance(stop.code, int) else EXIT_CRASH if stop.code else EXIT_DONE)
    except BaseException as error:  # PyTorch's CheckpointException is not an Exception
        now = time.monotonic()
        explanation = repairable(error) if isinstance(error, OSError) else None
        if explanation is not None:
            return Ending(explanation.exit_code, str(explanation), repairable=True, time=now)
        return Ending(EXIT_CRASH, f"[rank {place.rank}] {traceback.format_exc()}", time=now)


def take_place(place: Place, threads: int | None) -> None:
    """Set this process's device, threads and rank variables.

    Args:
        place: position of the rank.
        threads: CPU threads of this rank; None: an even share of the cores of the machine.
    """
    os.environ.update(
        RANK=str(place.rank),
        LOCAL_RANK=str(place.local_rank),
        WORLD_SIZE=str(place.world_size),
        LOCAL_WORLD_SIZE=str(place.local_size),
    )
    # megatron-core's overlap of communication and computation relies on launch order, so it needs a single queue.
    os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "1")
    get_platform().select(place.local_rank)
    torch.set_num_threads(threads or threads_per_rank(place.local_size))


def join_world(store: dist.Store | None, place: Place, timeout_s: float) -> None:
    """Create the default process group with this machine's back end.

    Args:
        store: where ranks meet; None: at MASTER_ADDR and MASTER_PORT.
        place: position of the rank.
        timeout_s: seconds after which a collective that does not complete is an error.
    """
    platform = get_platform()
    dist.init_process_group(
        platform.backend,
        init_method=None if store is not None else "env://",
        store=store,
        rank=place.rank,
        world_size=place.world_size,
        timeout=timedelta(seconds=timeout_s),
        device_id=platform.device if platform.device_type == "cuda" else None,
    )
