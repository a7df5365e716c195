"""`data clean` as a whole: nothing is lost, no byte depends on how the work was done, and kills do no harm."""

import gzip
import json
import random
import signal
import subprocess
import sys
import time
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from patience import PATIENCE

from megatron_ko.data.clean import finish
from megatron_ko.data.clean.calibration import calibrate
from megatron_ko.data.clean.clean import CleanOptions, clean, parts_folder
from megatron_ko.data.clean.config import CleanConfig, load_clean_config
from megatron_ko.data.clean.pipeline import Pipeline
from megatron_ko.data.clean.tally import SAMPLES, Tally
from megatron_ko.data.text.documents import Document
from megatron_ko.errors import DataError

DOCUMENTS = 1500  # a dozen chunks
PIPELINE = """
words: eojeol
stages:
  - html
  - unicode: {max_replacement: 0.2}
  - boilerplate
  - jamo_runs: {longest: 2}
  - length: {min_characters: 20}
  - hangul: {min_ratio: 0.3}
  - blocklist: {phrases: [카지노]}
  - gopher_repetition
  - personal: {resident: drop}
  - speech_level
"""


def write_config(folder: Path) -> Path:
    path = folder / "pipeline.yaml"
    path.write_text(PIPELINE, encoding="utf-8")
    return path


def records(korean: Callable[..., list[str]], number: int) -> Iterator[dict[str, Any]]:
    """Documents of which every stage finds something."""
    noise = ["", " ㅋㅋㅋㅋㅋㅋ", " 010-1234-5678", "\n로그인 | 회원가입", " 카지노", "\u200b", " 971013-9019902"]
    for index, text in enumerate(korean(number, 21)):
        if index % 97 == 0:
            text = "only English here, nothing else at all"
        if index % 31 == 0:
            text = "<html><p>" + text + "</p></html>"
        yield {"text": text + noise[index % len(noise)], "id": index}


@pytest.fixture
def options(tmp_path: Path, korean: Callable[..., list[str]]) -> CleanOptions:
    first, second = tmp_path / "a.jsonl", tmp_path / "b.jsonl.gz"
    lines = [json.dumps(record, ensure_ascii=False) for record in records(korean, DOCUMENTS)]
    lines[5:5] = ["{broken", '{"id": 1}', '{"text": " "}', ""]
    first.write_text("\n".join(lines[:1000]), encoding="utf-8")
    second.write_bytes(gzip.compress("\n".join(lines[1000:]).encode()))
    config = load_clean_config(write_config(tmp_path))
    # Small chunks and shards, so that there are several of both.
    return CleanOptions((first, second), tmp_path / "out", config, chunk_bytes=40_000, shard_bytes=1)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def documents(folder: Path) -> list[dict[str, Any]]:
    lines: list[bytes] = []
    for path in sorted(folder.glob("clean-*.jsonl.zst")):
        with path.open("rb") as stream:
            lines += zstandard.ZstdDecompressor().stream_reader(stream, read_across_frames=True).read().splitlines()
    return [json.loads(line) for line in lines]


def report_adds_up(report: dict[str, Any]) -> None:
    amount = dict(report["in"])
    for stage in report["stages"]:
        assert stage["in"] == amount
        for dropped in stage["dropped"].values():
            amount = {unit: amount[unit] - dropped[unit] for unit in amount}
        amount = {unit: amount[unit] - stage["shrunk"].get(unit, 0) for unit in amount}
        assert stage["out"] == amount
    assert report["out"] == amount


def test_documents_in_are_documents_out_and_dropped(options: CleanOptions) -> None:
    report = clean(options)
    assert report is not None
    report_adds_up(report)
    assert report["rejected"] == {"malformed JSON": 1, "no 'text'": 1, "empty text": 1}
    assert report["in"]["documents"] == DOCUMENTS
    kept = documents(options.output)
    texts = [record["text"] for record in kept]
    assert report["out"] == {
        "documents": len(kept),
        "characters": sum(map(len, texts)),
        "bytes": sum(len(text.encode()) for text in texts),
    }
    assert [record["id"] for record in kept] == sorted(record["id"] for record in kept), "order is kept"
    assert {record["speech_level"] for record in kept} <= {"존댓말", "반말", "문어체", "혼합", "없음"}
    assert Counter(record["speech_level"] for record in kept) == report["notes"]["speech_level"]
    manifest = json.loads((options.output / "manifest.json").read_bytes())
    assert sum(shard["documents"] for shard in manifest["shards"]) == manifest["documents"] == len(kept)
    assert len(manifest["shards"]) > 2
    assert [sum(source[name] for source in manifest["sources"]) for name in ("taken", "kept", "rejected")] == [
        DOCUMENTS,
        len(kept),
        3,
    ]
    rejected = [json.loads(line) for line in (options.output / "rejected.jsonl").read_bytes().splitlines()]
    assert [record["position"] for record in rejected] == [6, 7, 8]
    dropped = {stage["stage"]: list(stage["dropped"]) for stage in report["stages"] if stage["dropped"]}
    assert set(dropped) >= {"length", "hangul", "blocklist", "personal"}
    for stage, reasons in dropped.items():
        for reason in reasons:
            name = reason.replace(": ", "__")
            samples = (options.output / f"samples/{stage}.dropped.{name}.jsonl").read_bytes().splitlines()
            assert 1 <= len(samples) <= SAMPLES
    assert b"9019902" not in b"".join(contents(options.output / "samples").values()), "samples hold no personal data"
    assert not parts_folder(options.output).exists()


def test_no_byte_depends_on_workers_ranks_or_restarts(options: CleanOptions, tmp_path: Path) -> None:
    clean(options)
    expected = contents(options.output)
    assert {"report.json", "manifest.json", "retention.png", "rejected.jsonl"} <= set(expected)
    several = replace(options, output=tmp_path / "several", workers=2)
    clean(several)
    assert contents(several.output) == expected
    for rank in (2, 0, 1):
        ranked = replace(options, output=tmp_path / "ranked", rank=rank, size=3)
        assert (clean(ranked) is None) == (rank != 1)
    assert contents(tmp_path / "ranked") == expected


def test_formats_hold_the_same_documents(options: CleanOptions, tmp_path: Path) -> None:
    clean(options)
    clean(replace(options, output=tmp_path / "table", format="parquet"))
    tables = [pyarrow.parquet.read_table(path) for path in sorted((tmp_path / "table").glob("clean-*.parquet"))]
    assert [row for table in tables for row in table.to_pylist()] == documents(options.output)


def test_other_options_and_an_existing_output_are_refused(options: CleanOptions, tmp_path: Path) -> None:
    folder = parts_folder(options.output)
    clean(replace(options, rank=0, size=2))
    with pytest.raises(DataError, match="other options or inputs"):
        clean(replace(options, key="body"))
    assert folder.exists() and not options.output.exists()
    clean(replace(options, rank=1, size=2))
    with pytest.raises(DataError, match="exists already"):
        clean(options)


def test_bad_input_leaves_no_output(options: CleanOptions, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.jsonl.gz"
    damaged.write_bytes(options.inputs[1].read_bytes()[:-500])
    with pytest.raises(DataError, match="is damaged"):
        clean(replace(options, inputs=(options.inputs[0], damaged)))
    assert not options.output.exists()
    with pytest.raises(DataError, match="nothing to clean"):
        clean(replace(options, key="other", output=tmp_path / "other"))
    assert not (tmp_path / "other").exists() and not parts_folder(tmp_path / "other").exists()


def test_a_damaged_part_is_made_again(options: CleanOptions, tmp_path: Path) -> None:
    clean(replace(options, output=tmp_path / "expected"))
    clean(replace(options, rank=0, size=2))
    part = sorted(parts_folder(options.output).glob("part-*"))[1]
    part.write_bytes(part.read_bytes()[:-1])
    with pytest.raises(DataError, match="changed or damaged"):
        clean(replace(options, rank=1, size=2))
    assert not options.output.exists()
    assert clean(replace(options, rank=0, size=2)) is not None
    assert contents(options.output) == contents(tmp_path / "expected")


def command(options: CleanOptions, config: Path, *more: str) -> list[str]:
    inputs = [word for path in options.inputs for word in ("--input", str(path))]
    words = ["data", "clean", *inputs, "--output", str(options.output), "--config", str(config), *more]
    return [sys.executable, "-m", "megatron_ko.cli.main", *words]


def killed_runs_end_like_an_undisturbed_one(folder: Path, texts: list[Path], kills: int, seed: int) -> None:
    """Kill the parent at random moments of its work, then let it end; sha256 of everything must be the same."""
    config = write_config(folder)
    options = CleanOptions(tuple(texts), folder / "out", load_clean_config(config))
    first = replace(options, output=folder / "expected")
    start = time.monotonic()
    run = subprocess.Popen(command(first, config, "--workers", "2", "--json"), stdout=subprocess.DEVNULL)
    while not parts_folder(first.output).exists() and run.poll() is None:
        time.sleep(0.01)
    importing = time.monotonic() - start  # which takes longer than the work, and writes nothing
    assert run.wait() == 0
    working = time.monotonic() - start - importing
    assert len(documents(folder / "expected")) > 5000
    draw, done, hurry = random.Random(seed), 0, 1.0
    stages: Counter[str] = Counter()
    while done < kills:
        with (folder / "errors").open("w") as errors:
            words = command(options, config, "--workers", "2", "--json")
            run = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=errors)
        time.sleep(hurry * (0.9 * importing + draw.uniform(0.0, 1.1) * working))
        if run.poll() is not None:
            # A kill after all was done, while the process was ending, leaves a finished output for this start to find.
            told = (folder / "errors").read_text(encoding="utf-8")
            assert run.returncode == 0 or "the output exists already" in told, told
            stages["finished"] += 1
            hurry *= 0.9  # the machine is less busy than when it was timed
            assert contents(options.output) == contents(folder / "expected")
            subprocess.run(["rm", "-r", str(options.output)], check=True)
            continue
        children = psutil.Process(run.pid).children(recursive=True)
        run.send_signal(signal.SIGKILL)
        run.wait()
        _, alive = psutil.wait_procs(children, timeout=PATIENCE)
        assert not alive
        parts = parts_folder(options.output)
        stages[
            "merging" if (parts / "output").exists() else "working" if any(parts.glob("part-*")) else "starting"
        ] += 1
        assert not options.output.exists() or (options.output / "manifest.json").is_file()
        done += 1
    if not options.output.exists() or parts_folder(options.output).exists():
        subprocess.run(command(options, config, "--workers", "2"), check=True, capture_output=True)
    assert contents(options.output) == contents(folder / "expected")
    print(dict(stages))


def big_inputs(folder: Path, korean: Callable[..., list[str]], number: int) -> list[Path]:
    """Some megabytes in several chunks."""
    lines = [json.dumps(record, ensure_ascii=False) for record in records(korean, number)]
    paths = [folder / f"{half}.jsonl" for half in range(2)]
    for half, path in enumerate(paths):
        path.write_text("\n".join(lines[half::2]), encoding="utf-8")
    return paths


@pytest.mark.slow
def test_three_kills(tmp_path: Path, korean: Callable[..., list[str]]) -> None:
    killed_runs_end_like_an_undisturbed_one(tmp_path, big_inputs(tmp_path, korean, 16_000), kills=3, seed=1)


@pytest.mark.slow
def test_thirty_kills(tmp_path: Path, korean: Callable[..., list[str]]) -> None:
    killed_runs_end_like_an_undisturbed_one(tmp_path, big_inputs(tmp_path, korean, 16_000), kills=30, seed=2)


def test_a_kill_after_the_last_rename_is_a_finished_run(options: CleanOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(folder: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(finish, "remove_job", killed)
        clean(options)
    folder, expected = parts_folder(options.output), contents(options.output)
    assert folder.exists()
    with pytest.raises(DataError, match="other options or inputs"):
        clean(replace(options, format="parquet"))
    assert clean(options) == json.loads(expected["report.json"])
    assert contents(options.output) == expected and not folder.exists()


def test_a_full_disk_is_told_and_the_run_goes_on_later(options: CleanOptions, tmp_path: Path) -> None:
    config = write_config(tmp_path)
    script = "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000)); "
    script += "import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
    script += f"sys.argv = {['megatron-ko', *command(options, config, '--workers', '1')[3:]]!r}; "
    script += "from megatron_ko.cli.main import main; main()"
    full = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert full.returncode == 2 and "the disk is full" in full.stderr, full.stderr
    assert not options.output.exists()
    subprocess.run(command(options, config, "--workers", "1"), check=True, capture_output=True)
    assert len(documents(options.output)) > DOCUMENTS / 3


def test_the_verb_prints_what_it_did(options: CleanOptions, tmp_path: Path) -> None:
    config = write_config(tmp_path)
    done = subprocess.run(command(options, config, "--workers", "1"), capture_output=True, text=True, check=True)
    assert "little_hangul" in done.stdout and "존댓말" in done.stdout
    assert "documents/s" in done.stderr and "documents/s" not in done.stdout  # what a clock says is no result
    sample = replace(options, output=tmp_path / "measured")
    done = subprocess.run(
        command(sample, config, "--sample", "200", "--json"), capture_output=True, text=True, check=True
    )
    found = json.loads(done.stdout)
    assert 199 <= found["documents"] <= 201
    assert {path.name for path in sample.output.iterdir()} == {"calibration.json", "histograms.png"}


def test_calibration_says_what_each_limit_would_drop(options: CleanOptions) -> None:
    found = calibrate(options.reading, options.config, 10_000)
    assert found.documents == DOCUMENTS
    hangul = next(measure for measure in found.measures if measure.reason == "little_hangul")
    assert hangul.low == 0.3 and 0.009 < hangul.outside < 0.02
    assert sum(hangul.histogram.counts) == DOCUMENTS
    assert hangul.quantiles["0.01"] <= hangul.quantiles["0.5"] <= hangul.quantiles["0.99"]


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> CleanConfig:
    return load_clean_config(write_config(tmp_path_factory.mktemp("config")))


PIECES = st.one_of(
    st.text(max_size=20),
    st.sampled_from(
        ["한국어 문장이다. ", "ㅋㅋㅋㅋㅋ", "\n", "010-1234-5678 ", "카지노 ", "<p>", "로그인\n", "ᄀ", "ᅡ", "각", "é"]
    ),
)


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=st.lists(st.lists(PIECES, max_size=12).map("".join), max_size=8))
def test_any_documents_are_conserved_and_tallies_add_up(pipeline: CleanConfig, texts: list[str]) -> None:
    worker = Pipeline(pipeline)
    given_documents = [
        Document(text.encode("utf-8", "ignore").decode(), "s", index)
        for index, text in enumerate(texts)
        if text.strip()
    ]
    whole, halves = worker.tally(), [worker.tally(), worker.tally()]
    kept = list(worker.run(given_documents, whole))
    whole.check()
    assert whole.taken.documents == len(given_documents)
    assert whole.kept.documents == len(kept)
    assert whole.kept.characters == sum(len(document.text) for document in kept)
    dropped = sum(amount.documents for stage in whole.stages.values() for amount in stage.dropped.values())
    assert len(kept) + dropped == len(given_documents)
    assert all(unicodedata.is_normalized("NFC", document.text) for document in kept)
    assert all(document.text.strip() for document in kept)
    for document in given_documents:
        worker.clean(document, halves[document.position % 2])
    merged = Tally.merged(json.loads(json.dumps(half.to_json())) for half in halves)
    assert merged.to_json() == whole.to_json()
