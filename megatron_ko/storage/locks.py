"""Locks on files and folders, held until they are closed or the process ends for any reason."""

import fcntl
from typing import IO, Any

from megatron_ko.log import get_logger

_log = get_logger(__name__)


def try_lock(opened: IO[Any] | int, without_locks: bool = True, shared: bool = False) -> bool:
    """Lock an open file against other processes; False if one of them holds the lock.

    Args:
        opened: the file, or the handle of a folder.
        without_locks: the result if the file system has no locks, as with some network file systems.
        shared: against exclusive locks only.
    """
    try:
        fcntl.flock(opened, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        _log.debug("no lock on %s: %s", getattr(opened, "name", opened), error)
        return without_locks
    return True


def wait_for_lock(opened: IO[Any]) -> None:
    """Lock an open file as soon as no other process holds the lock; return at once if the file system has no locks."""
    try:
        fcntl.flock(opened, fcntl.LOCK_EX)
    except OSError as error:
        _log.debug("no lock on %s: %s", opened.name, error)
