"""A checkpoint that is being read stays, although training goes on and removes older ones. Needs no torch.

A reader holds a shared advisory lock on the manifest of the checkpoint, and retention removes only what it can lock
exclusively: the lock works across processes, and on NFS across machines, and ends with its reader, however that ends.
"""

import os
from dataclasses import dataclass
from pathlib import Path

from megatron_ko.artifacts import checkpoints
from megatron_ko.artifacts.checkpoints import MANIFEST, Manifest
from megatron_ko.errors import CheckpointError
from megatron_ko.log import get_logger
from megatron_ko.storage.locks import try_lock

_TRIES = 20  # how often a checkpoint may disappear between listing and pinning
_log = get_logger(__name__)


class Pin:
    """Keeps a checkpoint while this object lives. A copy for another process pins anew.

    Args:
        directory: the checkpoint.

    Raises:
        FileNotFoundError: it is gone, or about to go.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._handle = os.open(directory / MANIFEST, os.O_RDONLY)
        if not try_lock(self._handle, shared=True):
            self.release()
            raise FileNotFoundError(f"{directory} is being removed")
        if not self._there():
            self.release()
            raise FileNotFoundError(f"{directory} was removed")

    def _there(self) -> bool:
        """Whether the locked file is still the one under this name: it may have been removed before it was locked."""
        try:
            return os.path.samestat(os.fstat(self._handle), os.stat(self._directory / MANIFEST))
        except OSError:
            return False

    def release(self) -> None:
        """Let it go."""
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1

    def __del__(self) -> None:
        if hasattr(self, "_handle"):
            self.release()

    def __reduce__(self) -> tuple[type["Pin"], tuple[Path]]:
        return Pin, (self._directory,)


@dataclass(frozen=True)
class Pinned:
    """A checkpoint that stays while ``pin`` lives, with its manifest."""

    directory: Path
    manifest: Manifest
    pin: Pin | None


def newest_pinned(folder: Path, step: int | None = None) -> Pinned:
    """The newest checkpoint that matches its manifest, or the one of a given step, pinned before it is looked at.

    Args:
        folder: ``checkpoints`` of a run.
        step: of the checkpoint; None: the newest valid one.

    Raises:
        CheckpointError: there is none, or none is valid.
    """
    for _ in range(_TRIES):
        found, gone = [], False
        for candidate in checkpoints.wanted_steps(folder, step):
            directory = folder / checkpoints.name_of(candidate)
            pin = None
            if (directory / MANIFEST).is_file() or not directory.is_dir():
                try:
                    pin = Pin(directory)
                except FileNotFoundError:
                    gone = True
                    continue
            inspected = checkpoints.inspect(directory)
            if isinstance(inspected, Manifest):
                return Pinned(directory, inspected, pin)
            found.append(inspected)
        if not gone:
            raise checkpoints.none_valid(found)
    raise CheckpointError(
        "checkpoints are removed faster than they can be read", got=folder, remedy="raise checkpoint.keep"
    )


def remove_unless_pinned(directory: Path) -> bool:
    """Delete a checkpoint, unless somebody reads it; whether it is gone."""
    path = directory / MANIFEST
    if not path.is_file():
        checkpoints.remove(directory)
        return True
    handle = os.open(path, os.O_RDWR)  # NFS locks exclusively only what may be written
    try:
        if not try_lock(handle):
            _log.info("%s is being read, and stays until it is not", directory.name)
            return False
        checkpoints.remove(directory)
        return True
    finally:
        os.close(handle)
