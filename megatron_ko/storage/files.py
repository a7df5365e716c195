"""Files get their final names only when all of them are complete and on disk, so that partial files are never read."""

import os
import shutil
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import xxhash

from megatron_ko.errors import NO_SPACE, DataError, naming, repairable
from megatron_ko.storage.locks import try_lock

TEMPORARY = ".tmp-"  # prefix of unfinished files
_CHUNK = 8 << 20


@contextmanager
def explain_disk_errors(target: Path, elsewhere: str = "write elsewhere") -> Iterator[None]:
    """Turn errors of a full or read-only disk, or an existing path, into a DataError; other errors pass through."""
    try:
        yield
    except OSError as error:
        if (explanation := repairable(error, target, DataError, elsewhere)) is not None:
            raise explanation from error
        raise


class StagedFiles:
    """A set of new files that appear together: written as NAME.partial, synced, then renamed in the given order.

    If the block ends without ``publish``, all files are removed.

    Raises:
        DataError: a final name exists, or another process is writing the same files.
    """

    def __init__(self, finals: Sequence[Path]) -> None:
        self._finals = list(finals)
        self._open: dict[Path, BinaryIO] = {}
        self._published = False
        if present := [str(path) for path in finals if path.exists()]:
            raise DataError(
                "the output exists already; nothing is overwritten",
                got=", ".join(present),
                remedy="choose another --output, or remove these files",
            )

    def open(self, final: Path) -> BinaryIO:
        """Open the file that becomes ``final`` for writing, and lock it against a second writer."""
        assert final in self._finals, final
        final.parent.mkdir(parents=True, exist_ok=True)
        # "a", then truncate: a file that another process is writing must not be emptied before its lock is checked.
        stream = _partial(final).open("ab+")
        if not try_lock(stream):
            stream.close()
            raise DataError(f"another process is writing {final}", remedy="wait for it, or choose another --output")
        stream.truncate(0)
        self._open[final] = stream
        return stream

    def publish(self) -> None:
        """Give every opened file its final name, in the order of the list."""
        for stream in self._open.values():
            stream.flush()
            os.fsync(stream.fileno())
        for final in self._finals:
            if final in self._open:
                os.rename(_partial(final), final)
        sync_folder(self._finals[0].parent)
        self._published = True

    def __enter__(self) -> "StagedFiles":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._published:
            for final in self._open:
                _partial(final).unlink(missing_ok=True)
        for stream in self._open.values():
            # Bytes that did not fit on a full disk are still in the buffer, so closing fails again.
            _close(stream, lost=not self._published)


@contextmanager
def new_folder(final: Path) -> Iterator[Path]:
    """A new folder. It gets its final name if the block succeeds, and is removed if the block fails.

    Raises:
        DataError: it exists already.
    """
    if final.exists():
        raise DataError(
            "the output exists already; nothing is overwritten",
            got=str(final),
            remedy="choose another --output, or remove it",
        )
    partial = final.with_name(f".{final.name}.partial-{os.getpid()}")
    partial.mkdir(parents=True)
    try:
        yield partial
        for path in partial.iterdir():
            with path.open("rb") as stream:
                os.fsync(stream.fileno())
        os.rename(partial, final)
        sync_folder(final.parent)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def write_atomic(path: Path, content: bytes) -> None:
    """Write a file so that readers see either the old or the new content, even after a power failure."""
    temporary = path.with_name(f"{TEMPORARY}{path.name}-{uuid.uuid4().hex[:12]}")
    try:
        with naming(path), temporary.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.rename(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def hash_file(path: Path) -> str:
    """xxh3-128 hex digest of a file."""
    digest = xxhash.xxh3_128()
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def append_suffix(prefix: Path, suffix: str) -> Path:
    """Append a suffix to a prefix. Unlike ``Path.with_suffix``, dots in the prefix are kept.

    Raises:
        DataError: the prefix is empty.
    """
    if not prefix.name:
        raise DataError("the prefix has no name", got=f"'{prefix}'", expected="for example data/corpus")
    return prefix.with_name(prefix.name + suffix)


def sync_folder(folder: Path) -> None:
    """Make renames inside ``folder`` survive a power failure."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _partial(final: Path) -> Path:
    return final.with_name(final.name + ".partial")


def _close(stream: BinaryIO, lost: bool) -> None:
    try:
        stream.close()
    except OSError as error:
        if not (lost and error.errno in NO_SPACE):
            raise
