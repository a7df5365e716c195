"""Runs that broke down or are continued otherwise: what is kept, what is told, and how one goes back."""

import shlex
import shutil
from pathlib import Path

import pytest
from train_runs import NewRun, Run

from megatron_ko.artifacts.checkpoints import name_of, read_manifest
from megatron_ko.config.optim import OptimConfig
from megatron_ko.machine.place import is_restart

SMALL = ("model.num_layers=1", "eval.samples=0", "checkpoint.interval=2")


def test_a_run_that_skips_every_step_is_brought_back_by_the_printed_command(new_run: NewRun, tmp_path: Path) -> None:
    run = new_run("run", *SMALL, "checkpoint.keep=2", "resilience.max_consecutive_skips=7")
    assert run.train("training.steps=4").returncode == 0
    good = run.losses()
    ended = run.train("training.steps=30", "optim.lr=1.0e+30", "optim.clip_grad=0")
    assert ended.returncode == 2 and "--from-step 4" in ended.stderr
    # Step 5 still had finite gradients and ruined the weights; what was saved since is not what one goes back to.
    assert run.checkpoints == ["latest", name_of(4), name_of(10), name_of(12)]
    assert read_manifest(run.folder / "checkpoints" / name_of(12)).state["consecutive_skips"] > 0

    # The printed command, with a healthy rate: its file is the resolved configuration of the run.
    command = next(line for line in ended.stderr.splitlines() if "--from-step" in line).partition("to go back: ")[2]
    _, verb, config, option, step = shlex.split(command)
    assert (verb, option, step) == ("train", "--from-step", "4")
    back = Run(Path(config), run.folder).train_from(4, "training.steps=6", "optim.lr=3.0e-3", "optim.clip_grad=1.0")
    assert back.returncode == 0, back.stderr
    assert run.losses()[:4] == good and [step for step, _ in run.losses()] == [1, 2, 3, 4, 5, 6]
    assert not any(run.column("skipped"))
    assert run.checkpoints == ["latest", "set_aside", name_of(4), name_of(6)]
    control = new_run("control", *SMALL, "training.steps=6")
    assert control.train("training.steps=4").returncode == 0 and control.train().returncode == 0
    assert control.losses() == run.losses(), "as if the bad steps had never been"


def test_skipped_steps_count_anew_after_a_start(new_run: NewRun) -> None:
    run = new_run("run", *SMALL, "resilience.max_consecutive_skips=3", "optim.lr=1.0e+30", "optim.clip_grad=0")
    first = run.train("training.steps=30")
    stopped = run.last_step()
    again = run.train("training.steps=30")
    assert (first.returncode, again.returncode) == (2, 2) and run.last_step() > stopped


def test_a_step_that_was_not_saved_is_refused_and_changes_nothing(new_run: NewRun) -> None:
    run = new_run("run", *SMALL, "training.steps=4")
    assert run.train().returncode == 0
    before = (run.checkpoints, run.losses())
    ended = run.train_from(3)
    assert ended.returncode == 2 and "one of: 2, 4" in ended.stderr
    assert (run.checkpoints, run.losses()) == before


def test_going_back_twice_loses_nothing(new_run: NewRun) -> None:
    run = new_run("run", *SMALL, "training.steps=6")
    assert run.train().returncode == 0
    assert run.train_from(4).returncode == 0 and run.train_from(4).returncode == 0
    kept = sorted(entry.name for entry in (run.folder / "checkpoints/set_aside").iterdir())
    assert [name.rpartition("-")[0] for name in kept] == [name_of(6), name_of(6)]
    assert [step for step, _ in run.losses()] == [1, 2, 3, 4, 5, 6]


def test_checkpoints_of_every_so_many_steps_stay(new_run: NewRun) -> None:
    run = new_run("run", *SMALL, "training.steps=12", "checkpoint.keep=1", "checkpoint.keep_every=4")
    assert run.train().returncode == 0
    assert run.checkpoints == ["latest", name_of(4), name_of(8), name_of(12)]


def test_a_job_that_is_started_again_by_itself_does_not_go_back_again(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not is_restart()
    for name in ("SLURM_RESTART_COUNT", "TORCHELASTIC_RESTART_COUNT"):
        monkeypatch.setenv(name, "0")
        assert not is_restart()
        monkeypatch.setenv(name, "1")
        assert is_restart()
        monkeypatch.delenv(name)


CHANGES = {
    "lr": 1e-3,
    "min_lr_ratio": 0.9,
    "schedule": "linear",
    "warmup_steps": 9,
    "decay_steps": 4,
    "weight_decay": 5.0,
    "beta1": 0.5,
    "beta2": 0.5,
    "eps": 0.01,
    "clip_grad": 0.01,
}
ELSEWHERE = {"offload": "CUDA only", "groups": "refused: tests/parity/test_parameter_groups.py"}


@pytest.fixture(scope="module")
def begun(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = Run(tiny / "tiny.yaml", tmp_path_factory.mktemp("begun") / "run", (*SMALL, "launch.ranks_per_node=1"))
    assert run.train("training.steps=4").returncode == 0
    return run


def continued(begun: Run, folder: Path, *changes: str) -> tuple[list[str], str]:
    """Losses of steps 5 to 12 of a copy, and what was told."""
    shutil.copytree(begun.folder, folder)
    ended = Run(begun.config, folder, begun.overrides).train("training.steps=12", *changes)
    assert ended.returncode == 0, ended.stderr
    return [loss for _, loss in Run(begun.config, folder).losses()][4:], ended.stderr


def test_no_key_of_the_optimizer_is_missing_here() -> None:
    assert set(OptimConfig.model_fields) == CHANGES.keys() | ELSEWHERE.keys()


def test_what_is_told_as_changed_is_what_the_optimizer_does(begun: Run, tmp_path: Path) -> None:
    """Each key alone: it is told, and the losses of the steps after the next update are others."""
    same, told = continued(begun, tmp_path / "same")
    assert "changed since the checkpoint: optim" not in told
    for key, value in CHANGES.items():
        losses, told = continued(begun, tmp_path / key, f"optim.{key}={value}")
        assert f"changed since the checkpoint: optim.{key}: " in told, key
        assert losses[0] == same[0] and losses[1:] != same[1:], key


def test_changes_of_the_data_and_the_rate_tell_what_they_do(begun: Run, tmp_path: Path) -> None:
    _, told = continued(begun, tmp_path / "length", "data.sequence_length=16")
    assert "data.sequence_length: samples are numbered anew" in told
    _, told = continued(begun, tmp_path / "split", "data.split=[80,20,0]")
    assert "validation may see text that was trained on" in told
    _, told = continued(begun, tmp_path / "seed", "run.seed=8")
    assert "run.seed: samples are numbered anew" in told
    _, told = continued(begun, tmp_path / "rate", "optim.schedule=constant")
    assert "the learning rate of step 5 is 0.003; it would have been" in told


def test_changed_is_told_once_on_two_ranks(begun: Run, tmp_path: Path) -> None:
    _, told = continued(begun, tmp_path / "run", "optim.lr=1.0e-3", "launch.ranks_per_node=2")
    assert told.count("changed since the checkpoint: optim.lr") == told.count("the layout changed") == 1
