"""What `data dedup` prints: counts in words, nothing cut silently, and remedies that work as printed."""

import json
import re
from collections.abc import Sequence
from pathlib import Path

import pytest
from typer.testing import CliRunner

from megatron_ko.cli.data_progress import speed
from megatron_ko.cli.main import app
from megatron_ko.errors import DataError

FACT = "{}은 {}년 {}에서 태어난 대한민국의 소설가이다. 대학에서 국문학을 공부하였고 지금은 서울에 살고 있다."


def lines(path: Path, records: Sequence[object]) -> Path:
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")
    return path


def printed(*words: object) -> str:
    done = CliRunner().invoke(app, ["data", "dedup", *map(str, words)])
    assert done.exit_code == 0, done.output
    return done.output


@pytest.mark.parametrize(
    "records",
    [
        [{"text": "가", "x": 1}, {"text": "나", "x": "b"}],
        [{"text": "가", "x": {}}],
        [*({"text": f"글 {n}", "x": n} for n in range(4100)), {"text": "끝", "x": True}],
        [{"text": "가", "x": 2**64 - 1}, {"text": "나", "x": -1}],
        [{"text": "가", "x": [1]}, {"text": "나", "x": {"a": 1}}],
    ],
)
def test_the_remedy_for_parquet_works_as_printed(tmp_path: Path, records: list[object]) -> None:
    source, output = lines(tmp_path / "in.jsonl", records), tmp_path / "out"
    words = ["--input", str(source), "--output", str(output)]
    failed = CliRunner().invoke(app, ["data", "dedup", *words, "--output-format", "parquet"])
    assert isinstance(failed.exception, DataError) and failed.exception.remedy
    assert "run the same command to continue" not in failed.output
    options = re.findall(r"--output-format \S+ --restart", failed.exception.remedy)[0].split()
    assert f"{len(records):,} of {len(records):,} documents stay" in printed(*words, *options)


def test_pairs_and_rejections(tmp_path: Path) -> None:
    files = [
        lines(tmp_path / f"{name}.jsonl", [{"text": "같은 글"}, {"text": name}, {"no": 1}, {"text": 3}])
        for name in "abcdefgh"
    ]
    output = printed("--input", *files, "--output", tmp_path / "out", "--exact", "document")
    assert output.count("near duplicates of") == 5 and "2 more pairs of files with 2 duplicates" in output
    assert "16 records rejected: 8 'text' is no text, 8 no 'text'; see " in output


def test_near_duplicates_are_told_by_similarity(tmp_path: Path) -> None:
    """Facts of one form are near: what is printed shows at which similarity they went."""
    facts = [
        FACT.format(*one) for one in (("김민수", 1961, "부산"), ("이서연", 1984, "대구"), ("박지훈", 1972, "광주"))
    ]
    source = lines(tmp_path / "facts.jsonl", [{"text": fact} for fact in facts])
    output = printed("--input", source, "--output", tmp_path / "out", "--near")
    assert re.search(r"similar    (\d at 0\.\d-0\.\d(, )?)+\n", output) and "1 of 3 documents stay" in output
    assert "3 of 3" in printed("--input", source, "--output", tmp_path / "all", "--near", "--threshold", "0.9")


def test_a_slow_run_has_a_speed() -> None:
    assert (speed(3_250_000, 1.0), speed(900, 0.5)) == ("3.2 MB/s", "1.8 kB/s")
