"""Errors say what, got, expected, remedy, and survive the way between processes."""

import logging
import pickle

import pytest

from megatron_ko import log
from megatron_ko.errors import DataError, KoError


def test_message_has_every_part_that_was_given() -> None:
    text = str(DataError("file is truncated", got="10 bytes", expected="20 bytes", remedy="copy it again"))
    assert text.splitlines()[0] == "file is truncated"
    assert [line.split(":")[0].strip() for line in text.splitlines()[1:]] == ["got", "expected", "remedy"]
    assert "got" not in str(KoError("just so"))


def test_errors_cross_process_borders() -> None:
    copy = pickle.loads(pickle.dumps(DataError("broken", got=1, remedy="mend")))
    assert type(copy) is DataError and str(copy) == str(DataError("broken", got=1, remedy="mend"))


def test_only_rank_zero_chats(capsys: pytest.CaptureFixture[str]) -> None:
    logger = log.get_logger("megatron_ko.test")
    for rank in (0, 3):
        log.configure(rank)
        logger.info("hello")
        logger.warning("careful")
    assert capsys.readouterr().err.splitlines() == ["hello", "careful", "[rank 3] careful"]
    logging.getLogger("megatron_ko").handlers.clear()
