"""What is wrong with a run's data is told by config check and --dry-run, not on a cluster after the queue."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from train_runs import NewRun, Run

from megatron_ko.config import load_config
from megatron_ko.data.training.preview import preview_data
from megatron_ko.report.html import write_report


def run_cli(*words: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "megatron_ko.cli.main", *map(str, words)], capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("data.tokenizer={tmp}/none", "{tmp}/none"),
        ('data.sources=[{{"prefix":"{tmp}/none"}}]', "data preprocess"),
        ("model.vocab_size=599", "model.vocab_size=600"),
        ("data.sequence_length=100000", "not a single sequence"),
    ],
)
def test_both_verbs_tell_what_the_start_would(new_run: NewRun, tmp_path: Path, override: str, told: str) -> None:
    run = new_run("run", override.format(tmp=tmp_path), "model.max_position_embeddings=100000")
    for command in (["config", "check"], ["train", "--dry-run"]):
        ended = run_cli(*command, run.config, *run.words())
        assert ended.returncode == 2, ended.stdout
        assert told.format(tmp=tmp_path) in ended.stderr and "remedy" in ended.stderr
        assert run_cli(*command, "--no-data", run.config, *run.words()).returncode == 0
    assert not run.folder.exists()


def test_epochs_are_those_of_the_samples_that_are_read(new_run: NewRun) -> None:
    run = new_run("run", "training.steps=9", "eval.samples=0")
    config = load_config(run.config, run.words())
    (epochs,) = preview_data(config).epochs.values()
    assert run.train().returncode == 0
    lineage = json.loads((run.folder / "lineage.json").read_text())
    (corpus,) = lineage["corpus"]
    assert lineage["epochs"] == {"corpus": round(epochs, 3)}
    page = write_report(run.folder).read_text()
    assert f"<dt>epochs</dt><dd>corpus {epochs:.2f}</dd>" in page
    per_epoch = 0.9 * corpus["tokens"] / 32  # by hand: the share of training, in sequences
    assert epochs == pytest.approx(9 * 8 / per_epoch, rel=0.05)


def test_a_corpus_that_is_read_too_often_is_told(new_run: NewRun) -> None:
    run = new_run("run", "training.steps=100000")
    ended = run_cli("train", "--dry-run", run.config, *run.words())
    assert ended.returncode == 0 and "read again and again: corpus " in ended.stdout
    told = json.loads(run_cli("config", "check", "--json", run.config, *run.words()).stdout)
    assert told["epochs"]["corpus"] > 4


def test_a_prefix_of_shards_and_a_folder_are_sources(tiny: Path, tmp_path: Path, new_run: NewRun) -> None:
    from train_runs import ROOT

    from megatron_ko.data.tokens.preprocess import PreprocessOptions, preprocess

    corpus = tuple(sorted((ROOT / "demo/corpus").glob("*.jsonl")))
    preprocess(PreprocessOptions(inputs=corpus, tokenizer=tiny / "tokenizer", output=tmp_path / "all/whole", shards=3))
    shutil.copytree(tmp_path / "all", tmp_path / "folder")
    runs: list[Run] = []
    for name, prefix in (("prefix", "all/whole"), ("folder", "folder")):
        source = json.dumps([{"prefix": str(tmp_path / prefix)}])
        runs.append(new_run(name, f"data.sources={source}", "training.steps=3", "checkpoint.interval=0"))
        assert runs[-1].train().returncode == 0
    assert runs[0].losses() == runs[1].losses()
    assert len(json.loads((runs[0].folder / "lineage.json").read_text())["corpus"]) == 3
    assert not [key for key in runs[0].lines("train")[-1] if key.startswith("tokens/")], "one source"
    (tmp_path / "all/whole-00001-of-00003.idx").unlink()
    ended = run_cli("config", "check", runs[0].config, *runs[0].words())
    assert ended.returncode == 2 and "1 of 3 shards are missing" in ended.stderr
