"""Jobs: parts are done once, in any order, by any number of workers and ranks; what a kill cuts short is done again."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from patience import PATIENCE

from megatron_ko.data.jobs.job import Job, Part, job_parts, remove_job, run_job
from megatron_ko.errors import DataError

ROOT = Path(__file__).parents[2]
CHUNKS = [(index, f"payload {index}") for index in range(23)]


def write(payload: str, part: Path) -> dict[str, object]:
    part.write_text(payload, encoding="utf-8")
    with (part.parent.parent / "calls").open("a", encoding="utf-8") as calls:
        calls.write(payload + "\n")
    return {"length": len(payload)}


def calls(job: Job) -> list[str]:
    path = job.folder.parent / "calls"
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return Job(tmp_path / "work.parts", {"option": 1, "files": ["a", "가"]})


def joined(parts: list[Part]) -> str:
    return "".join(part.path.read_text(encoding="utf-8") for part in parts)


EXPECTED = "".join(payload for _, payload in CHUNKS)


@pytest.mark.parametrize("workers", [1, 3])
def test_parts_come_in_order_and_are_done_once(job: Job, workers: int) -> None:
    job = replace(job, workers=workers, suffix=".txt")
    seen: list[int] = []
    run_job(job, CHUNKS, write, lambda part: seen.append(part.index))
    parts = job_parts(job.folder, verify=True)
    assert [part.index for part in parts] == sorted(seen) == list(range(23))
    assert joined(parts) == EXPECTED and all(part.path.suffix == ".txt" for part in parts)
    assert [part.statistics["length"] for part in parts] == [len(payload) for _, payload in CHUNKS]
    run_job(job, CHUNKS, write)
    assert len(calls(job)) == 23
    remove_job(job.folder)
    assert not job.folder.exists()


def test_an_interrupted_job_goes_on(job: Job) -> None:
    def interrupted() -> Iterator[tuple[int, str]]:
        yield from CHUNKS[:9]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_job(job, interrupted(), write)
    with pytest.raises(DataError, match="not finished"):
        job_parts(job.folder)
    run_job(job, CHUNKS, write)
    assert joined(job_parts(job.folder)) == EXPECTED
    assert sorted(calls(job)) == sorted(payload for _, payload in CHUNKS)


def test_what_was_damaged_is_done_again(job: Job) -> None:
    run_job(job, CHUNKS, write)
    first, second, third = (job.folder / f"part-{index:08d}" for index in (3, 5, 7))
    first.unlink()
    second.write_text("payload x", encoding="utf-8")  # the same size
    third.write_text("", encoding="utf-8")
    with pytest.raises(DataError, match="changed or damaged"):
        job_parts(job.folder)
    run_job(job, CHUNKS, write)
    assert joined(job_parts(job.folder, verify=True)) == EXPECTED
    assert calls(job)[23:] == ["payload 3", "payload 5", "payload 7"]
    run_job(job, CHUNKS, write)
    assert len(calls(job)) == 26


@pytest.mark.parametrize("cut", [1, 30, 1000])
def test_a_record_cut_short_costs_one_part(job: Job, cut: int) -> None:
    run_job(job, CHUNKS, write)
    records = job.folder / "rank-00000.jsonl"
    whole = records.read_bytes()
    records.write_bytes(whole[:-cut])
    lost = whole.count(b"\n") - 1 - whole[:-cut].count(b"\n")
    run_job(job, CHUNKS, write)
    assert len(calls(job)) == 23 + lost
    assert joined(job_parts(job.folder)) == EXPECTED


def test_another_job_in_the_folder_is_refused_by_name(job: Job) -> None:
    run_job(job, CHUNKS, write)
    other = replace(job, identity={"option": 2, "files": ["a", "가"], "new": True})
    with pytest.raises(DataError, match="unfinished run") as caught:
        run_job(other, CHUNKS, write)
    assert "option: 2; new: true" in str(caught.value) and "files" not in str(caught.value)
    with pytest.raises(DataError, match="ranks: 2"):
        run_job(replace(job, size=2), CHUNKS, write)
    (job.folder / "job.json").write_text("{", encoding="utf-8")
    with pytest.raises(DataError, match="damaged"):
        run_job(job, CHUNKS, write)


def test_ranks_share_the_chunks_without_talking(job: Job) -> None:
    ranks = [replace(job, rank=rank, size=3) for rank in range(3)]
    run_job(ranks[2], CHUNKS, write)
    run_job(ranks[0], CHUNKS, write)
    with pytest.raises(DataError, match="1 of 3 ranks are missing: 1"):
        job_parts(job.folder)
    run_job(ranks[1], CHUNKS, write)
    assert joined(job_parts(job.folder, verify=True)) == EXPECTED
    assert len(calls(job)) == 23


def test_the_same_rank_does_not_run_twice(job: Job) -> None:
    def nested() -> Iterator[tuple[int, str]]:
        yield CHUNKS[0]
        run_job(job, CHUNKS, write)

    with pytest.raises(DataError, match="another process"):
        run_job(job, nested(), write)


def fail(payload: str, part: Path) -> dict[str, object]:
    part.write_text("half", encoding="utf-8")
    raise DataError("bad chunk", got=payload)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_failing_chunk_leaves_no_part(job: Job, workers: int) -> None:
    with pytest.raises(DataError, match="bad chunk"):
        run_job(replace(job, workers=workers), CHUNKS[:1], fail)
    assert not list(job.folder.glob("part-*"))
    run_job(job, CHUNKS, write)
    assert joined(job_parts(job.folder)) == EXPECTED


def die(payload: str, part: Path) -> dict[str, object]:
    if payload == "payload 4" and not (part.parent.parent / "died").exists():
        (part.parent.parent / "died").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return write(payload, part)


def test_a_dead_worker_is_noticed_and_the_rest_is_kept(job: Job) -> None:
    with pytest.raises(DataError, match="worker process died"):
        run_job(replace(job, workers=2), CHUNKS, die)
    run_job(job, CHUNKS, die)
    assert joined(job_parts(job.folder, verify=True)) == EXPECTED


def slow(payload: str, part: Path) -> dict[str, object]:
    time.sleep(0.01)
    return write(payload, part)


CODE = """
import sys; sys.path.insert(0, "tests/unit")
from pathlib import Path
from test_data_jobs import CHUNKS, slow
from megatron_ko.data.jobs.job import Job, run_job
run_job(Job(Path(sys.argv[1]), {"option": 1, "files": ["a", "가"]}), CHUNKS, slow)
"""


def test_a_killed_process_loses_one_chunk(job: Job) -> None:
    for _ in range(3):
        before = len(calls(job))
        process = subprocess.Popen([sys.executable, "-c", CODE, str(job.folder)], cwd=ROOT)
        deadline = time.monotonic() + PATIENCE
        while len(calls(job)) < before + 4 and time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.wait()
    run_job(job, CHUNKS, write)
    assert joined(job_parts(job.folder, verify=True)) == EXPECTED
    assert 23 <= len(calls(job)) <= 23 + 3
    assert json.loads((job.folder / "job.json").read_text(encoding="utf-8"))["size"] == 1
