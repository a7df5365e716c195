"""What a run writes, and how it behaves when numbers, disks or requests are not as they should be."""

import fcntl
import json
import math
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from train_runs import NewRun, Run

from megatron_ko.artifacts.checkpoints import read_manifest
from megatron_ko.artifacts.native import weights_of
from megatron_ko.config import load_config
from megatron_ko.data.tokenizer import load_tokenizer
from megatron_ko.data.training.feed import SampleFeed
from megatron_ko.data.training.origins import Reading
from megatron_ko.data.training.pretrain import build_datasets
from megatron_ko.metrics.schema import TRAIN, VALID
from megatron_ko.train.schedule import lr_at


def test_a_run_directory_holds_what_is_promised(new_run: NewRun) -> None:
    run = new_run("run", "launch.ranks_per_node=2", "logging.tensorboard=true")
    ended = run.train()
    assert ended.returncode == 0, ended.stderr
    config = load_config(run.config, run.words())

    train, valid = run.lines("train"), run.lines("valid")
    assert all(tuple(line) == TRAIN.names(["always"]) for line in train)
    assert all(tuple(line) == VALID.names(["always"]) for line in valid)
    assert run.column("step") == list(range(1, 31))
    assert run.column("tokens") == [step * 8 * 32 for step in range(1, 31)]
    assert run.column("samples") == [step * 8 for step in range(1, 31)]
    assert run.column("lr") == [lr_at(step, config.optim, 30) for step in range(30)]
    assert all(float.fromhex(line["loss_hex"]) == line["loss"] for line in train)
    assert train[-1]["loss"] < train[0]["loss"] - 0.3
    assert all(line["memory_peak"] > 2**20 and line["tflops"] > 0 and line["mfu"] is None for line in train)

    assert [(line["step"], line["samples"], line["valid_tokens"]) for line in valid] == [
        (step, 10, 320) for step in (10, 20, 30)
    ]
    last = valid[-1]
    assert last["perplexity"] == math.exp(last["valid_loss"]) and 0 < last["bits_per_byte"] < 8

    assert run.checkpoints == ["latest", "step_00000020", "step_00000030"]
    manifest = read_manifest(run.folder / "checkpoints/step_00000030")
    assert (manifest.step, manifest.samples, manifest.tokens) == (30, 240, 7680)
    assert manifest.layout["data"] == 2 and {
        "rng.pt",
        "model/.metadata",
        "model/__0_0.distcp",
        "model/__1_0.distcp",
    } < set(manifest.files)

    lineage = json.loads((run.folder / "lineage.json").read_text())
    saved = {"step": manifest.step, "tokens": manifest.tokens, "weights": weights_of(manifest)}
    assert lineage["checkpoint"] == saved
    assert lineage["tokenizer"]["fingerprint"] == manifest.tokenizer and lineage["corpus"][0]["tokens"] > 0
    assert lineage["parameters"] == 56352 and lineage["environment"]["world_size"] == 2
    assert load_config(run.folder / "config.resolved.yaml") == config
    assert list((run.folder / "metrics/tensorboard").iterdir())
    for line in ("layout      tensor 1 x pipeline 1 x data 2", "tokens      256 a step", "parameters  56,352"):
        assert line in ended.stderr
    steps = [line.split()[1] for line in ended.stdout.splitlines() if line.startswith("step ")]
    assert steps[0] == "1/30" and steps[-1] == "30/30" and ended.stdout.count("valid at step ") == 3


def test_validation_is_the_same_for_every_layout(new_run: NewRun) -> None:
    """11 sequences in micro-batches of 2, over data ranks and in parts: filled up, and the filling is not counted."""
    layouts = [("launch.ranks_per_node=1",), ("launch.ranks_per_node=2",), ("launch.ranks_per_node=4",)]
    layouts.append(("launch.ranks_per_node=4", "parallel.context=2"))
    short = ("model.num_layers=2", "training.micro_batch_size=2", "training.steps=2", "eval.samples=11")
    found = []
    for number, layout in enumerate(layouts):
        run = new_run(f"run{number}", *layout, *short)
        assert run.train().returncode == 0
        found.append(run.lines("valid")[-1])
    assert [line["valid_tokens"] for line in found] == [352] * 4
    assert [line["valid_loss"] for line in found[1:]] == pytest.approx([found[0]["valid_loss"]] * 3, rel=1e-6)


def test_samples_do_not_depend_on_the_number_of_data_ranks(tiny: Path) -> None:
    config = load_config(tiny / "tiny.yaml")
    data = build_datasets(config.data, load_tokenizer(config.data.tokenizer), (64, 8, 0), seed=7).train

    def steps(size: int, start: int) -> list[set[int]]:
        ranks = [
            SampleFeed(data, before=Reading(start), global_batch=8, micro_batch=2, dp_rank=rank, dp_size=size)
            for rank in range(size)
        ]
        found = []
        for _ in range(2):
            indices = [index for rank in ranks for part in rank.indices() for index in part]
            assert len(indices) == len(set(indices)) == 8
            found.append(set(indices))
            for rank in ranks:
                rank.next()
        return found

    assert steps(1, 16) == steps(2, 16) == steps(4, 16) == [set(range(16, 24)), set(range(24, 32))]


def test_fp16_lowers_its_scale_until_gradients_fit(new_run: NewRun) -> None:
    settings = ("precision.dtype=fp16", "precision.initial_loss_scale=1.0e+9", "precision.loss_scale_hysteresis=1")
    run, half = new_run("run", *settings, "eval.samples=0"), new_run("half", *settings, "eval.samples=0")
    ended = run.train()
    assert ended.returncode == 0, ended.stderr
    skipped, scale = run.column("skipped"), run.column("loss_scale")
    first = skipped.index(False)
    assert first > 2 and all(skipped[:first])
    assert scale[: first + 1] == [1e9 / 2**n for n in range(first + 1)]
    assert run.column("grad_norm")[0] is None and run.column("grad_norm")[first] > 0
    assert run.column("loss")[first] == pytest.approx(run.column("loss")[0], abs=0.2)  # nothing was learnt before
    assert run.column("loss")[-1] < run.column("loss")[first] - 0.2
    # The scale and the count of skips are part of the state.
    assert half.train("training.steps=10").returncode == 0
    assert half.train().returncode == 0
    assert half.column("loss_scale") == scale
    assert read_manifest(half.folder / "checkpoints/step_00000030").state["skipped"] == sum(skipped)


def test_fp16_learns_like_fp32(new_run: NewRun) -> None:
    runs = [new_run(dtype, f"precision.dtype={dtype}", "training.steps=15") for dtype in ("fp32", "fp16")]
    assert [run.train().returncode for run in runs] == [0, 0]
    assert runs[1].column("loss") == pytest.approx(runs[0].column("loss"), rel=5e-3)
    assert runs[1].column("grad_norm") == pytest.approx(runs[0].column("grad_norm"), rel=5e-2)


def test_a_run_that_only_skips_stops_and_says_why(new_run: NewRun) -> None:
    run = new_run("run", "optim.lr=1.0e+30", "resilience.max_consecutive_skips=3", "launch.ranks_per_node=2")
    ended = run.train()
    assert ended.returncode == 2, ended.stderr
    assert "not finite for too many steps in a row" in ended.stderr and "Traceback" not in ended.stderr
    assert run.column("skipped")[-4:] == [True] * 4
    assert run.column("grad_norm")[-1] is None  # not a number is null in JSON


def test_a_file_that_cannot_be_written_leaves_older_checkpoints(new_run: NewRun) -> None:
    run = new_run("run", "launch.ranks_per_node=2", "training.steps=14")
    assert run.train("training.steps=10", "optim.decay_steps=6").returncode == 0
    before = snapshot(run.folder / "checkpoints")
    ended = replace(run, largest_file=200_000).train()
    assert ended.returncode == 2, ended.stderr
    assert "could not be saved" in ended.stderr and "too large" in ended.stderr and "Traceback" not in ended.stderr
    assert snapshot(run.folder / "checkpoints") == before
    assert run.train().returncode == 0
    assert run.column("step") == list(range(1, 15))


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_full_disk_is_told_before_anything_is_written(new_run: NewRun, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    run = Run(new_run("x").config, disk / "run", ("logging.tensorboard=false",))
    mount = f"mount -t tmpfs -o size=900k none {disk} || exit 77"
    script = f'{mount}; "$@"; code=$?; ls -A {disk}/run/checkpoints; exit $code'
    if shutil.which("unshare") is None:
        pytest.skip("needs unshare to mount a small disk of its own")
    ended = subprocess.run(
        ["unshare", "-m", "sh", "-c", script, "sh", *run.command()], capture_output=True, text=True, check=False
    )
    if ended.returncode in (1, 77) and "megatron-ko" not in ended.stderr:
        pytest.skip(f"no small disk can be mounted here: {ended.stderr.strip()}")
    assert ended.returncode == 2, ended.stderr
    assert "free bytes, a checkpoint needs" in ended.stderr and "Traceback" not in ended.stderr
    assert "step 1/" not in ended.stdout, "before the first step, not at the first save"


def test_a_place_that_cannot_be_written_is_told_at_once(new_run: NewRun) -> None:
    run = new_run("run")
    run.folder.mkdir(parents=True)
    (run.folder / "checkpoints").write_text("in the way")
    nowhere = new_run("other", "run.dir=/proc/nowhere")
    for place in (run, nowhere):
        ended = place.train()
        assert ended.returncode == 2 and "Traceback" not in ended.stderr, ended.stderr
        assert "step 1/" not in ended.stdout


def test_a_dry_run_tells_and_writes_nothing(new_run: NewRun) -> None:
    run = new_run("run", "parallel.tensor=2", "training.steps=3")
    ended = run.train()
    assert ended.returncode == 0
    other = replace(run, folder=run.folder.with_name("other"))
    dry = subprocess.run(other.command("--dry-run"), capture_output=True, text=True, check=True).stdout
    assert dry and dry.splitlines() == [line for line in ended.stderr.splitlines() if line in dry]
    assert not other.folder.exists()


def test_a_second_training_in_the_same_directory_is_refused(new_run: NewRun) -> None:
    run = new_run("run")
    run.folder.mkdir(parents=True)
    with (run.folder / ".lock").open("ab") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        ended = run.train()
    assert ended.returncode == 2 and "another process is training" in ended.stderr
    assert [entry.name for entry in run.folder.iterdir()] == [".lock"]


def test_a_run_directory_that_is_a_file_is_told(new_run: NewRun) -> None:
    run = new_run("run")
    run.folder.parent.mkdir(parents=True, exist_ok=True)
    run.folder.write_text("mine")
    ended = run.train()
    assert ended.returncode == 2 and "in the way" in ended.stderr and "Traceback" not in ended.stderr
    assert run.folder.read_text() == "mine"


def test_a_run_to_measure_saves_nothing_and_tells_where_its_time_went(new_run: NewRun) -> None:
    run = new_run("profile", "training.steps=4", "checkpoint.interval=0", "logging.profile.start=2")
    ended = run.train()
    assert ended.returncode == 0, ended.stderr
    assert "device busy" in ended.stdout + ended.stderr
    assert run.column("step") == [1, 2, 3, 4] and not (run.folder / "checkpoints").exists()
    summary = json.loads((run.folder / "profile/summary.json").read_text(encoding="utf-8"))
    assert summary["steps"] == 2 and 0 < summary["device_busy_ms"] <= summary["wall_ms"]
    assert summary["by_kind"]["matrix products"] > 0
    assert {path.name for path in (run.folder / "profile").iterdir()} == {"trace.json.gz", "table.txt", "summary.json"}


def test_bits_per_byte_are_of_the_text_that_was_scored(new_run: NewRun) -> None:
    run = new_run("run", "training.steps=2", "eval.samples=6")
    assert run.train().returncode == 0
    config = load_config(run.config, run.words())
    tokenizer = load_tokenizer(config.data.tokenizer)
    data = build_datasets(config.data, tokenizer, (16, 6, 0), seed=config.run.seed).valid
    assert data is not None
    spelt = sum(int(tokenizer.token_bytes()[data[number]["labels"].numpy()].sum()) for number in range(6))
    line = run.lines("valid")[-1]
    bits = line["valid_loss"] * line["valid_tokens"] / math.log(2)
    assert line["bits_per_byte"] == pytest.approx(bits / spelt, rel=1e-6)
