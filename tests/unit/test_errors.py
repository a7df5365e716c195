"""Errors say what, got, expected, remedy, and survive the way between processes."""

import errno
import logging
import pickle
from pathlib import Path

import pytest

from megatron_ko import log
from megatron_ko.errors import DataError, KoError, naming, repairable


def test_message_has_every_part_that_was_given() -> None:
    text = str(DataError("file is truncated", got="10 bytes", expected="20 bytes", remedy="copy it again"))
    assert text.splitlines()[0] == "file is truncated"
    assert [line.split(":")[0].strip() for line in text.splitlines()[1:]] == ["got", "expected", "remedy"]
    assert "got" not in str(KoError("just so"))


def test_errors_cross_process_borders() -> None:
    copy = pickle.loads(pickle.dumps(DataError("broken", got=1, remedy="mend")))
    assert type(copy) is DataError and str(copy) == str(DataError("broken", got=1, remedy="mend"))


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "the disk is full"),
        (OSError(errno.EROFS, "Read-only file system", "/a/b"), "no permission for /a/b"),
        (FileExistsError(errno.EEXIST, "File exists", "/a/b"), "in the way of /a/b"),
        (NotADirectoryError(errno.ENOTDIR, "Not a directory", "/a/b"), "in the way of /a/b"),
        (PermissionError(errno.EPERM, "Operation not permitted"), None),
        (ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"), None),
    ],
)
def test_errors_of_the_system_that_a_user_can_repair(error: OSError, expected: str | None) -> None:
    explanation = repairable(error, kind=DataError)
    if expected is None:
        assert explanation is None
    else:
        assert isinstance(explanation, DataError) and expected in explanation.what and explanation.remedy


def test_a_full_disk_is_told_with_the_file_that_was_written() -> None:
    with pytest.raises(OSError) as caught, naming(Path("/a/page.html")):
        raise OSError(errno.ENOSPC, "No space left on device")
    explanation = repairable(caught.value)
    assert explanation is not None and explanation.what == "the disk is full: /a/page.html was not written"
    with pytest.raises(OSError) as caught, naming(Path("/a")):
        raise OSError(errno.ENOSPC, "No space left on device", "/b")
    assert caught.value.filename == "/b"  # the system knows better


def test_only_rank_zero_chats(capsys: pytest.CaptureFixture[str]) -> None:
    logger = log.get_logger("megatron_ko.test")
    for rank in (0, 3):
        log.configure(rank)
        logger.info("hello")
        logger.warning("careful")
        logger.error("stop")
    assert capsys.readouterr().err.splitlines() == ["hello", "careful", "stop", "[rank 3] stop"]
    logging.getLogger("megatron_ko").handlers.clear()
