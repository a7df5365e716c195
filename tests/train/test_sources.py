"""What was read of each source, and how well each is predicted: counted, told, saved, and the same after a stop."""

import json
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from train_runs import ROOT, NewRun, Run

from megatron_ko.artifacts.checkpoints import name_of, read_manifest
from megatron_ko.config import load_config
from megatron_ko.data.tokenizer import load_tokenizer
from megatron_ko.data.tokens.preprocess import PreprocessOptions, preprocess
from megatron_ko.data.training.batch import Batch
from megatron_ko.data.training.pretrain import build_datasets
from megatron_ko.objectives import LanguageModelling
from megatron_ko.report.html import write_report
from megatron_ko.report.store import read_run
from megatron_ko.report.summary import summarise
from megatron_ko.train.evaluate import ScoredText

SHORT = (
    *("training.steps=12", "eval.interval=6", "checkpoint.interval=4", "logging.tensorboard=true"),
    "model.num_layers=2",
)


@pytest.fixture(scope="module")
def mixed(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Two sources, the second one in two shards, as an override: ``data.sources=[...]``."""
    folder = tmp_path_factory.mktemp("mixed")
    texts = sorted((ROOT / "demo/corpus").glob("*.jsonl"))
    for name, inputs, shards in (("prose", texts[::2], None), ("talk", texts[1::2], 2)):
        preprocess(PreprocessOptions(tuple(inputs), tiny / "tokenizer", folder / name, shards=shards))
    weights = {"prose": 0.7, "talk-00000-of-00002": 0.2, "talk-00001-of-00002": 0.1}
    return f"data.sources={json.dumps([{'prefix': str(folder / n), 'weight': w} for n, w in weights.items()])}"


def tokens_of(line: dict[str, float]) -> dict[str, float]:
    return {name: line[f"tokens/{name}"] for name in ("prose", "talk")}


def drawn(run: Run) -> tuple[np.ndarray, np.ndarray]:
    """0 for prose, 1 for talk, of 12 steps of training [96] and of validation [10]: as megatron-core's samples say."""
    config = load_config(run.config, run.words())
    data = build_datasets(config.data, load_tokenizer(config.data.tokenizer), (12 * 8, 10, 0), seed=config.run.seed)
    assert data.valid is not None
    train, valid = (
        np.array([int(part[index]["dataset_id"]) > 0 for index in range(length)]).astype(int)
        for part, length in ((data.train, 96), (data.valid, 10))
    )
    return train, valid


@pytest.mark.parametrize(
    "layout", [("launch.ranks_per_node=2",), ("parallel.pipeline=2",)], ids=["data-parallel", "pipeline"]
)
def test_tokens_and_losses_by_source_survive_a_stop(new_run: NewRun, mixed: str, layout: tuple[str, ...]) -> None:
    control, stopped = new_run("control", mixed, *SHORT, *layout), new_run("stopped", mixed, *SHORT, *layout)
    ended = control.train()
    assert ended.returncode == 0, ended.stderr
    assert stopped.train_until(5, signal.SIGKILL).returncode == -signal.SIGKILL
    assert stopped.train().returncode == 0

    chosen, validated = drawn(control)
    read = [32 * int(chosen[: 8 * step].sum()) for step in range(1, 13)]
    expected = [{"prose": 256 * step - talk, "talk": talk} for step, talk in enumerate(read, 1)]
    assert [tokens_of(line) for line in control.lines("train")] == expected
    assert [tokens_of(line) for line in stopped.lines("train")] == expected
    assert 0.2 < expected[-1]["talk"] / 3072 < 0.4
    for run in (control, stopped):
        assert read_manifest(run.folder / "checkpoints" / name_of(12)).state["source_tokens"] == expected[-1]
    assert f"talk {expected[-1]['talk']:,} tokens" in ended.stderr

    keys = ("valid_loss", "valid_loss/prose", "valid_loss/talk")
    losses = [[line[key] for key in keys] for line in control.lines("valid")]
    assert losses == [[line[key] for key in keys] for line in stopped.lines("valid")] and len(losses) == 2
    for whole, prose, talk in losses:
        share = validated.mean()
        assert 0 < share < 1 and abs(talk - prose) > 0.001
        assert whole == pytest.approx((1 - share) * prose + share * talk, rel=1e-6)
    assert f"(prose {losses[-1][1]:.4f}, talk {losses[-1][2]:.4f})" in ended.stdout


def test_the_report_tells_sources(new_run: NewRun, mixed: str) -> None:
    run = new_run("run", mixed, *SHORT)
    assert run.train().returncode == 0
    sources = summarise(read_run(run.folder)).sources
    valid, last = run.lines("valid")[-1], run.lines("train")[-1]
    for name in ("prose", "talk"):
        assert sources[name] == {"tokens": last[f"tokens/{name}"], "valid_loss": valid[f"valid_loss/{name}"]}
    page = write_report(run.folder).read_text(encoding="utf-8")
    assert "<h2>Sources</h2>" in page and "Validation loss of talk" in page and f"{last['tokens/talk']:,}" in page


def test_a_source_that_is_no_longer_read_stays_in_the_ledger(new_run: NewRun, mixed: str) -> None:
    run = new_run("run", mixed, "training.steps=4", "eval.samples=0")
    assert run.train().returncode == 0
    before = tokens_of(run.lines("train")[-1])
    other = mixed.partition("=")[2]
    prose = json.dumps([{**json.loads(other)[0], "name": "newspaper"}])
    ended = run.train("training.steps=8", f"data.sources={prose}")
    assert ended.returncode == 0 and "no longer read" in ended.stderr
    last = run.lines("train")[-1]
    assert {**before, "newspaper": 4 * 256} == {**tokens_of(last), "newspaper": last["tokens/newspaper"]}
    assert last["tokens"] == sum(before.values()) + last["tokens/newspaper"]


def test_a_mixture_lasts_when_the_batch_shrinks(new_run: NewRun, mixed: str) -> None:
    """Samples are numbered by what was read, not by steps of the present batch."""
    run = new_run("run", mixed, "checkpoint.interval=100", "eval.samples=0", "optim.schedule=constant")
    assert run.train("training.steps=4", "training.global_batch_size=32").returncode == 0
    ended = run.train("training.steps=6", "training.global_batch_size=2", "training.micro_batch_size=1")
    assert ended.returncode == 0, ended.stderr
    assert run.lines("train")[-1]["samples"] == 4 * 32 + 2 * 2
    assert "tokens 4.22k/4.22k" in ended.stdout.splitlines()[-1]


def test_one_source_is_told_once(new_run: NewRun) -> None:
    run = new_run("run", "training.steps=2")
    assert run.train().returncode == 0
    assert not [key for name in ("train", "valid") for line in run.lines(name) for key in line if "/" in key]
    assert read_manifest(run.folder / "checkpoints" / name_of(2)).state["source_tokens"] == {"corpus": 512}


def test_the_loss_of_a_source_is_that_of_its_rows() -> None:
    draw = torch.Generator().manual_seed(3)
    output = torch.rand(5, 7, generator=draw)
    mask = (torch.rand(5, 7, generator=draw) > 0.3).float()
    other = torch.zeros(5, 7, dtype=torch.int64)
    batch = Batch(other, other, mask, other, sources=(0, 2, 0, 0, 2))
    whole = LanguageModelling().loss(output, batch)
    objective = ScoredText(LanguageModelling(), torch.tensor([3]), ("a", "b", "c"))
    found = objective.loss(output, batch)
    assert found.sums["nll"].equal(whole.sums["nll"]) and objective.count(batch) == LanguageModelling().count(batch)
    assert tuple(found.metrics) == objective.metric_names == ("bytes", "loss/a", "loss/b", "loss/c")
    assert float(found.metrics["bytes"][0]) == 3 * float(mask.sum())
    for name, rows in {"loss/a": [0, 2, 3], "loss/b": [], "loss/c": [1, 4]}.items():
        total, count = found.metrics[name]
        assert float(total) == pytest.approx(float((output * mask)[rows].sum())) and int(count) == int(mask[rows].sum())
