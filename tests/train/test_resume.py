"""Killed, stopped, damaged, continued: real processes, and the losses are compared to the last bit."""

import json
import random
import signal
import time
from pathlib import Path

import pytest
from train_runs import NewRun, assert_a_stop_changes_nothing

from megatron_ko.artifacts.checkpoints import Manifest, name_of, read_manifest
from megatron_ko.train.lineage import versions
from megatron_ko.train.resume import check_resumable, is_bound


def test_five_kills_change_no_bit(new_run: NewRun) -> None:
    """Two data-parallel ranks with dropout: weights, moments, random states and samples must all come back."""
    short = ("training.steps=50", "checkpoint.interval=4", "model.num_layers=2")
    overrides = ("launch.ranks_per_node=2", "model.hidden_dropout=0.1", *short)
    control, killed = new_run("control", *overrides), new_run("killed", *overrides)
    assert control.train().returncode == 0
    # Of steps three apart every remainder of four occurs: at a checkpoint, and one, two and three steps after it.
    steps = sorted(random.Random(time.time_ns()).sample(range(5, 36, 3), 5))
    for step in steps:
        assert killed.train_until(step, signal.SIGKILL).returncode == -signal.SIGKILL
        time.sleep(0.2)  # ranks die with their parent
    resumed = killed.train()
    assert resumed.returncode == 0, resumed.stderr
    assert killed.losses() == control.losses(), f"killed at {steps}"
    assert killed.valid() == control.valid()
    assert [step for step, _ in killed.losses()] == list(range(1, 51))
    assert killed.column("grad_norm") == control.column("grad_norm")
    sessions = json.loads((killed.folder / "lineage.json").read_text())["sessions"]
    assert len(sessions) == 6 and sessions[-1]["resumed_from_step"] > 0


def test_sigterm_saves_within_a_step_and_the_next_start_continues(new_run: NewRun) -> None:
    short = ("training.steps=16", "checkpoint.interval=1000", "eval.interval=1", "eval.samples=4")
    overrides = ("parallel.pipeline=2", "model.num_layers=2", *short)
    control, stopped = new_run("control", *overrides), new_run("stopped", *overrides)
    assert control.train().returncode == 0
    first = stopped.train_until(6, signal.SIGTERM)
    assert first.returncode == 75, first.stderr
    step = stopped.last_step()
    assert stopped.checkpoints == ["latest", name_of(step)]
    second = stopped.train()
    assert second.returncode == 0, second.stderr
    assert f"resuming from {stopped.folder}/checkpoints/{name_of(step)}" in second.stderr
    assert stopped.losses() == control.losses()
    assert stopped.valid() == control.valid()  # the validation that the stop came before was made up for


@pytest.mark.parametrize(
    "layout",
    [
        ("launch.ranks_per_node=2", "parallel.distributed_optimizer=false", "precision.dtype=bf16"),
        ("launch.ranks_per_node=2", "parallel.overlap_grad_reduce=true", "parallel.overlap_param_gather=true"),
        ("parallel.pipeline=2", "parallel.virtual_pipeline=2", "precision.dtype=fp16"),
        ("parallel.tensor=2", "parallel.sequence_parallel=true", "training.recompute=full"),
        ("parallel.context=2", "data.document_mask=true", "precision.dtype=bf16", "training.recompute=full"),
    ],
    ids=["replicated-optimizer", "overlapped", "interleaved-fp16", "sequence-parallel-recomputed", "context-documents"],
)
def test_every_layout_continues_bit_for_bit(new_run: NewRun, layout: tuple[str, ...]) -> None:
    layers = 4 if "parallel.virtual_pipeline=2" in layout else 2
    short = ("training.steps=8", "eval.interval=4", f"model.num_layers={layers}")
    overrides = (*layout, "model.hidden_dropout=0.1", *short)
    control, stopped = new_run("control", *overrides), new_run("stopped", *overrides)
    assert_a_stop_changes_nothing(control, stopped)


def test_a_finished_run_is_left_alone(new_run: NewRun) -> None:
    run = new_run("run", "training.steps=5")
    assert run.train().returncode == 0
    before = {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in run.folder.rglob("*")}
    again = run.train()
    assert again.returncode == 0 and "is done: step 5 of 5" in again.stderr
    assert {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in run.folder.rglob("*")} == before
    # A longer run continues where it ended.
    longer = run.train("training.steps=8")
    assert longer.returncode == 0 and "training.steps: 5 -> 8" in longer.stderr
    # A shorter one is told what there is.
    assert "is done: step 8 of 5" in run.train().stderr
    assert [step for step, _ in run.losses()] == list(range(1, 9))


def test_damage_is_passed_over_and_all_damage_is_refused(new_run: NewRun) -> None:
    short = ("model.num_layers=2", "training.steps=15", "checkpoint.interval=5")
    run, control = new_run("run", *short), new_run("control", *short)
    assert control.train().returncode == 0
    assert run.train_until(12, signal.SIGINT).returncode == 75
    newest, older = (run.folder / "checkpoints" / name for name in sorted(run.checkpoints[1:], reverse=True))
    flip_a_bit(next((newest / "model").glob("*.distcp")))
    resumed = run.train()
    assert resumed.returncode == 0, resumed.stderr
    assert f"damaged checkpoint passed over: {newest.name}" in resumed.stderr
    assert f"resuming from {older}" in resumed.stderr
    assert run.losses() == control.losses()
    for name in run.checkpoints[1:]:
        (run.folder / "checkpoints" / name / "rng.pt").unlink()
    refused = run.train("training.steps=20")
    assert refused.returncode == 2 and "none is valid" in refused.stderr and "Traceback" not in refused.stderr
    assert run.losses() == control.losses()


def test_a_run_whose_last_checkpoint_is_damaged_is_not_done(new_run: NewRun) -> None:
    run = new_run("run", "training.steps=8", "checkpoint.interval=4")
    assert run.train().returncode == 0
    losses, last = run.losses(), run.folder / "checkpoints" / name_of(8)
    flip_a_bit(next((last / "model").glob("*.distcp")))  # same size: only the hash tells
    again = run.train()
    assert again.returncode == 0 and "is done: step" not in again.stderr
    assert f"damaged checkpoint passed over: {last.name}" in again.stderr and "done at step 8" in again.stderr
    assert run.losses() == losses
    assert "is done: step 8 of 8" in run.train().stderr


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (("parallel.tensor=2", "precision.dtype=bf16"), ("parallel.pipeline=2", "precision.dtype=bf16")),
        (("launch.ranks_per_node=2",), ("parallel.tensor=2", "parallel.pipeline=2", "parallel.sequence_parallel=true")),
        (("parallel.pipeline=2", "parallel.virtual_pipeline=2"), ()),
        (("parallel.context=2", "data.document_mask=true"), ("parallel.tensor=2", "data.document_mask=true")),
    ],
    ids=["tp2-to-pp2-bf16", "dp2-to-tp2pp2", "vpp2-to-one", "cp2-to-tp2"],
)
def test_another_layout_continues_with_the_same_samples(
    new_run: NewRun, before: tuple[str, ...], after: tuple[str, ...]
) -> None:
    layers = 4 if "parallel.virtual_pipeline=2" in before else 2
    short = ("training.steps=8", "eval.interval=0", f"model.num_layers={layers}")
    control, moved = new_run("control", *short, *before), new_run("moved", *short)
    assert control.train().returncode == 0
    assert moved.train_until(4, signal.SIGTERM, *before).returncode == 75
    step = moved.last_step()
    resumed = moved.train(*after)
    assert resumed.returncode == 0, resumed.stderr
    assert "does not continue bit for bit" in resumed.stderr
    assert moved.column("step") == control.column("step") and moved.column("samples") == control.column("samples")
    assert moved.column("loss_hex")[:step] == control.column("loss_hex")[:step]
    tolerance = 2e-3 if "precision.dtype=bf16" in before else 1e-5
    assert moved.column("loss") == pytest.approx(control.column("loss"), rel=tolerance)


def test_what_does_not_fit_is_refused_and_changes_nothing(new_run: NewRun) -> None:
    run = new_run("run", "training.steps=4")
    assert run.train().returncode == 0
    losses = run.losses()
    changes = {"model.ffn_hidden_size=128": "64 -> 128", "model.tie_embeddings=false": "True -> False"}
    for steps, (change, told) in zip((4, 8), changes.items(), strict=True):  # after 4 steps it is already complete
        refused = run.train(change, f"training.steps={steps}")
        assert refused.returncode == 2 and f"{change.partition('=')[0]}: {told}" in refused.stderr
        assert "set them back" in refused.stderr and "Traceback" not in refused.stderr
    assert run.losses() == losses and "ffn_hidden_size: 64" in (run.folder / "config.resolved.yaml").read_text()


def test_weights_belong_to_the_whole_rotary_scaling() -> None:
    """Whoever starts from weights with other factors of YaRN gets another function without a word otherwise."""
    paths = ("model.rope.scaling.mscale", "model.rope.scaling.beta_fast", "model.rope.scaling.low_freq_factor")
    assert all(is_bound(path) for path in paths) and not is_bound("model.init_std")


def test_a_newer_format_and_another_tokenizer_are_refused(new_run: NewRun) -> None:
    from megatron_ko.config import load_config
    from megatron_ko.errors import CheckpointError, ConfigError

    run = new_run("run", "training.steps=2")
    assert run.train().returncode == 0
    manifest = read_manifest(run.folder / "checkpoints" / name_of(2))
    config = load_config(run.config, [f"run.dir={run.folder}", *run.overrides])
    assert check_resumable(config, manifest.tokenizer, manifest, versions()) == []
    with pytest.raises(ConfigError, match="tokenizer fingerprint"):
        check_resumable(config, "0" * 64, manifest, versions())
    newer = Manifest(**{**vars(manifest), "versions": {**manifest.versions, "megatron_core": "99.1.0"}})
    with pytest.raises(CheckpointError, match=r"newer megatron-core"):
        check_resumable(config, manifest.tokenizer, newer, versions())
    lines = check_resumable(config, manifest.tokenizer, newer, {**versions(), "megatron_core": "99.1.7"})
    assert lines == ["versions.megatron_core: 99.1.0 -> 99.1.7"]
