"""One training at a time in a run directory: two would cut off and overwrite each other's records and checkpoints."""

import fcntl
import time
from pathlib import Path
from typing import IO

from megatron_ko.errors import KoError, LaunchError, repairable
from megatron_ko.log import get_logger
from megatron_ko.parallel.collectives import broadcast_object

FILE = ".lock"
# The ranks of a run that was just killed need a moment to die.
_PATIENCE_S = 5.0
_held: list[IO[bytes]] = []  # until this process ends, however it ends
_log = get_logger(__name__)


def hold(directory: Path, first: bool) -> None:
    """Create the run directory and keep every other training out of it until this process ends. A collective.

    Args:
        directory: the run directory.
        first: whether this is rank 0, which holds the lock for all.

    Raises:
        LaunchError: on all ranks, when another process trains in this directory, or nothing can be written there.
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
    while not _locked(stream):
        if time.monotonic() > deadline:
            stream.close()
            raise LaunchError(
                "another process is training in this run directory",
                got=directory,
                remedy="wait for it or stop it, or choose another run.dir",
            )
        time.sleep(0.05)
    _held.append(stream)


def _locked(stream: IO[bytes]) -> bool:
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        # Some network file systems have no locks.
        _log.debug("no lock on %s: %s", stream.name, error)
    return True
