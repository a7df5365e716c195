"""The best validation: a run that ends when nothing improves, the checkpoint that is kept, and what starts from it."""

import json
import signal
from dataclasses import replace

import pytest
from train_runs import NewRun, Run

from megatron_ko.artifacts.native import best_step, find_pretrained
from megatron_ko.cli.which_checkpoint import chosen_step
from megatron_ko.config.training import EarlyStopping
from megatron_ko.errors import CheckpointError
from megatron_ko.train.best import note_validation
from megatron_ko.train.state import Evaluation, TrainState

# A rate at which the loss falls for a few validations and then rises.
RISING = (
    "optim.lr=0.05", "optim.schedule=constant", "optim.warmup_steps=0", "eval.interval=2", "checkpoint.interval=4",
    "checkpoint.keep=1", "training.steps=60",
)  # fmt: skip
STOPPING = "training.early_stopping={patience: 3}"


def state_of(run: Run, step: int) -> dict[str, object]:
    manifest = run.folder / f"checkpoints/step_{step:08d}/manifest.json"
    found: dict[str, object] = json.loads(manifest.read_text(encoding="utf-8"))["state"]
    return found


def best_of(run: Run) -> int:
    losses = {line["step"]: line["valid_loss"] for line in run.lines("valid")}
    return min(losses, key=lambda step: losses[step])


def test_a_run_ends_when_nothing_improves_and_keeps_the_best(new_run: NewRun) -> None:
    run = new_run("run", *RISING, STOPPING, "checkpoint.keep_best=true")
    ended = run.train()
    assert ended.returncode == 0, ended.stderr
    last, best = run.last_step(), best_of(run)
    assert last < 60 and last == best + 6, "three validations, two steps apart"
    assert f"done at step {last}: 3 validations without a better valid_loss" in ended.stderr
    assert run.checkpoints == ["latest", f"step_{best:08d}", f"step_{last:08d}"]
    assert best_step(run.folder) == chosen_step(run.folder, None, True) == best
    assert run.train().returncode == 0 and run.last_step() == last, "a finished run is left as it is"
    more = run.train("training.early_stopping.patience=4")
    assert more.returncode == 0 and run.last_step() == last + 2
    started = new_run("next", f"checkpoint.start_from={run.folder}", "checkpoint.start_best=true", "training.steps=1",
                      "checkpoint.interval=1", "optim.warmup_steps=0")  # fmt: skip
    assert started.train().returncode == 0
    lineage = json.loads((started.folder / "lineage.json").read_text(encoding="utf-8"))
    assert lineage["parents"][0]["weights"] == find_pretrained(run.folder, best).weights_hash


@pytest.mark.parametrize("step", [6, *(pytest.param(n, marks=pytest.mark.slow) for n in (3, 9))])
def test_a_stop_does_not_forget_what_was_best(step: int, new_run: NewRun) -> None:
    settings = (*RISING, STOPPING, "checkpoint.keep_best=true")
    whole, stopped = new_run("whole", *settings), new_run("stopped", *settings)
    assert whole.train().returncode == 0
    assert stopped.train_until(step, signal.SIGKILL).returncode == -signal.SIGKILL
    assert stopped.train().returncode == 0
    assert stopped.losses() == whole.losses() and stopped.valid() == whole.valid()
    last = whole.last_step()
    assert state_of(stopped, last)["best_step"] == state_of(whole, last)["best_step"] == best_of(whole)
    assert stopped.checkpoints == whole.checkpoints


def test_without_the_best_checkpoint_it_says_so(new_run: NewRun) -> None:
    run = new_run("run", *RISING, "training.steps=12")
    assert run.train().returncode == 0
    with pytest.raises(CheckpointError, match=r"no checkpoint of its best validation(.|\n)*keep_best"):
        best_step(run.folder)


def test_what_counts_as_better() -> None:
    evaluation = Evaluation(1.0, None, None, 1, 1, 0.0, {"accuracy": 0.5, "margin": 0.0})
    state, settings = TrainState(step=1), EarlyStopping(patience=2, min_delta=0.1)
    for step, loss in enumerate((1.0, 0.95, float("nan"), 0.85), start=1):
        state.step = step
        note_validation(state, replace(evaluation, loss=loss), settings)
    assert (state.best_step, state.best_value, state.unimproved) == (4, 0.85, 0)
    state, settings = TrainState(step=1), EarlyStopping(patience=2, metric="accuracy")
    for step, accuracy in enumerate((0.5, 0.7, 0.6, 0.7), start=1):
        state.step = step
        note_validation(state, replace(evaluation, metrics={"accuracy": accuracy}), settings)
    assert (state.best_step, state.unimproved) == (2, 2)
