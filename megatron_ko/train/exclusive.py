"""Allows one training at a time in a run directory; two would overwrite each other's records and checkpoints."""

import time
from pathlib import Path
from typing import IO

from megatron_ko.errors import KoError, LaunchError, repairable
from megatron_ko.parallel.collectives import broadcast_object
from megatron_ko.storage.locks import try_lock

FILE = ".lock"
# The ranks of a run that was just killed need a moment to exit.
_PATIENCE_S = 5.0
_held: list[IO[bytes]] = []  # until this process ends for any reason


def lock_run_dir(directory: Path, first: bool) -> None:
    """Create the run directory and lock out any other training until this process ends. A collective.

    Args:
        directory: the run directory.
        first: whether this is rank 0, which holds the lock for all ranks.

    Raises:
        LaunchError: on all ranks, if another process trains in this directory, or it is not writable.
    """
    failure: KoError | None = None
    try:
        if first:
            _lock(directory)
    except KoError as error:
        failure = error
    except OSError as error:
        failure = repairable(error) or LaunchError(
            "the run directory cannot be made", got=str(error), remedy="choose another run.dir"
        )
    if (told := broadcast_object(failure)) is not None:
        raise told


def _lock(directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    stream = (directory / FILE).open("ab")
    deadline = time.monotonic() + _PATIENCE_S
    while not try_lock(stream):
        if time.monotonic() > deadline:
            stream.close()
            raise LaunchError(
                "another process is training in this run directory",
                got=directory,
                remedy="wait for it or stop it, or choose another run.dir",
            )
        time.sleep(0.05)
    _held.append(stream)
