"""Progress in a log, and what a slow pipeline costs."""

import time
from pathlib import Path

import pytest

from megatron_ko.cli import data_progress
from megatron_ko.data.clean.clean import CleanOptions, clean
from megatron_ko.data.clean.config import load_clean_config

PAUSE = 0.2


def test_a_line_comes_while_nothing_gets_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One chunk can take longer than a minute."""
    monkeypatch.setattr(data_progress, "_LINE_SECONDS", PAUSE)
    (tmp_path / "a.txt").write_bytes(b"x" * 2_000_000)
    with data_progress.bar_over_bytes("cleaning", (tmp_path / "a.txt",)) as progress:
        time.sleep(3 * PAUSE)
        progress(1_000_000)
        time.sleep(3 * PAUSE)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("cleaning: 0.0 of 2.0 MB, after ") and lines[-1].startswith("cleaning: 1.0 of 2.0 MB")
    with data_progress.bars_of_passes() as of_pass:
        of_pass("verify", 0.5)
        time.sleep(3 * PAUSE)
    assert capsys.readouterr().err.startswith("verify: 50%, after ")
    time.sleep(2 * PAUSE)
    assert not capsys.readouterr().err  # it has ended


def test_kiwi_says_what_it_costs(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("kiwipiepy")
    (tmp_path / "a.txt").write_text("한국어 문장을 형태소로 나눈다.\n" * 20, encoding="utf-8")
    for words, told in (("kiwi", True), ("eojeol", False)):
        caplog.clear()
        (tmp_path / "clean.yaml").write_text(f"words: {words}\nstages: [unicode]\n", encoding="utf-8")
        clean(CleanOptions((tmp_path / "a.txt",), tmp_path / words, load_clean_config(tmp_path / "clean.yaml")))
        assert ("about 0.025 MB of text a second" in caplog.text) is told
