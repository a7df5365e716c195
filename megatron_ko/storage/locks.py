"""Locks on files and folders, held until they are closed or the process ends, however it ends."""

import fcntl
from typing import IO, Any

from megatron_ko.log import get_logger

_log = get_logger(__name__)


def try_lock(opened: IO[Any] | int, without_locks: bool = True) -> bool:
    """Lock an open file against other processes; False when one of them holds it.

    Args:
        opened: the file, or the handle of a folder.
        without_locks: the answer where the file system has no locks, as is the case with some network file systems.
    """
    try:
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        _log.debug("no lock on %s: %s", getattr(opened, "name", opened), error)
        return without_locks
    return True


def wait_for_lock(opened: IO[Any]) -> None:
    """Lock an open file as soon as nobody else holds it; at once where the file system has no locks."""
    try:
        fcntl.flock(opened, fcntl.LOCK_EX)
    except OSError as error:
        _log.debug("no lock on %s: %s", opened.name, error)
