"""What a user can get wrong, said in one shape: what, got, expected, remedy; and the exit codes of the program."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

EXIT_DONE = 0
EXIT_USER_ERROR = 2
EXIT_REQUEUE = 75
EXIT_NO_PROGRESS = 76

NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NOT_ALLOWED = (errno.EACCES, errno.EPERM, errno.EROFS)
_IN_THE_WAY = (errno.ENOTDIR, errno.EEXIST, errno.EISDIR)


class KoError(Exception):
    """A problem that the user can repair. Ends the program with exit code 2 and is never retried.

    Args:
        what: what went wrong, in one sentence.
        got: the offending value, where one exists.
        expected: what would have been accepted.
        remedy: what to do or type next.
    """

    exit_code = EXIT_USER_ERROR

    def __init__(self, what: str, *, got: object = None, expected: object = None, remedy: str | None = None) -> None:
        self.what, self.got, self.expected, self.remedy = what, got, expected, remedy
        super().__init__(self._render())

    def _render(self) -> str:
        lines = [self.what]
        for label, value in (("got", self.got), ("expected", self.expected), ("remedy", self.remedy)):
            if value is not None:
                lines.append(f"  {label + ':':<10}{value}")
        return "\n".join(lines)

    def __reduce__(self) -> tuple[object, ...]:
        # Exceptions cross process borders (data workers, ranks); keyword-only fields need their own recipe.
        return _rebuild, (type(self), self.what, self.got, self.expected, self.remedy)


def _rebuild(kind: type[KoError], what: str, got: object, expected: object, remedy: str | None) -> KoError:
    return kind(what, got=got, expected=expected, remedy=remedy)


class ConfigError(KoError):
    """A configuration that cannot work."""


class DataError(KoError):
    """Missing, damaged or unusable data."""


class TokenizerError(KoError):
    """A tokenizer that cannot be trained, loaded or trusted."""


class CheckpointError(KoError):
    """A checkpoint that cannot be written, read or trusted."""


class ConvertError(KoError):
    """A conversion that did not prove itself."""


class LaunchError(KoError):
    """Processes that could not be started or kept together."""


class LostError(RuntimeError):
    """Something that must be conserved was not: a fault of this program, or of the machine. Ends it as a crash does."""


def conserve(what: str, before: object, after: object) -> None:
    """See that what came in is what went out. Unlike an assertion it is there under ``python -O``, too.

    Raises:
        LostError: it is not.
    """
    if before != after:
        raise LostError(f"{what} are not conserved: {before} came in, {after} are accounted for; nothing was published")


def repairable(
    error: OSError, target: object = None, kind: type[KoError] = KoError, elsewhere: str = "write elsewhere"
) -> KoError | None:
    """What a full or read-only disk, or a file where a folder should be, means to the user.

    Args:
        error: what the operating system said.
        target: what was being written, where the error does not name it.
        kind: class of the result.
        elsewhere: how to write to another place.

    Returns:
        None when it is nothing that the user can repair.
    """
    path = error.filename or target
    # numpy tells a short write without an error number: "9000 requested and 1000 written".
    if error.errno in NO_SPACE or (error.errno is None and "requested and" in str(error)):
        what = "the disk is full" + (f": {target or path} was not written" if path else "")
        return kind(what, got=str(error), expected="free space", remedy=f"free space, or {elsewhere}")
    if path is not None and error.errno in _NOT_ALLOWED:
        remedy = f"check who may read and write it, or {elsewhere}"
        return kind(f"no permission for {path}", got=str(error), remedy=remedy)
    if path is not None and error.errno in _IN_THE_WAY:
        remedy = "choose another path, or move away what is there"
        return kind(f"a file or folder is in the way of {path}", got=str(error), remedy=remedy)
    return None


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Add the path to an error of the system that names none, as a full disk does while a file is written."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = os.fspath(path)
        raise
