"""Runs on conversations and preferences: they learn, go on to the bit, and compare with the right reference."""

import json
import math
import signal
from pathlib import Path
from shutil import copytree, rmtree

import numpy as np
import pytest
from chat_runs import ANSWERS, LENGTH, command, overrides
from train_runs import NewRun, Run, assert_a_stop_changes_nothing


def test_sft_learns_the_answers_and_tells_trained_tokens(tuned: Run) -> None:
    losses = tuned.column("loss")
    assert losses[-1] < 0.5 * losses[0]
    assert tuned.lines("valid")[-1]["bits_per_byte"] is not None
    state = json.loads((tuned.folder / "checkpoints/step_00000040/manifest.json").read_text(encoding="utf-8"))["state"]
    assert sum(state["source_tokens"].values()) == tuned.column("tokens")[-1] < 40 * 8 * LENGTH


@pytest.mark.parametrize(
    "kind", ["sft", "kto", *(pytest.param(k, marks=pytest.mark.slow) for k in ("dpo", "orpo", "simpo"))]
)
def test_a_stop_changes_nothing(kind: str, rows: Path, tuned: Run, new_run: NewRun, tmp_path: Path) -> None:
    chosen = [*overrides(rows, kind, tmp_path / "cache"), f"checkpoint.start_from={tuned.folder}"]
    assert_a_stop_changes_nothing(new_run("whole", *chosen), new_run("stopped", *chosen))


@pytest.mark.parametrize(
    "layout",
    [(), ("parallel.tensor=2",), pytest.param(("launch.ranks_per_node=2",), marks=pytest.mark.slow)],
    ids=["1", "tp2", "dp2"],
)
def test_a_run_begins_at_its_reference(
    layout: tuple[str, ...], rows: Path, tuned: Run, new_run: NewRun, tmp_path: Path
) -> None:
    start = f"checkpoint.start_from={tuned.folder}"
    run = new_run("dpo", *overrides(rows, "dpo", tmp_path / "cache"), start, *layout)
    ended = run.train()
    assert ended.returncode == 0, ended.stderr
    assert run.column("loss")[0] == pytest.approx(math.log(2), abs=1e-6)
    assert run.column("accuracy")[-1] > 0.6 and run.column("margin")[-1] > 0.1
    assert run.lines("valid")[-1]["accuracy"] is not None and run.lines("valid")[-1]["perplexity"] is None


def test_kto_begins_at_one_half_and_parts_good_from_bad(
    rows: Path, tuned: Run, new_run: NewRun, tmp_path: Path
) -> None:
    start = f"checkpoint.start_from={tuned.folder}"
    run = new_run("kto", *overrides(rows, "kto", tmp_path / "cache"), start)
    ended = run.train()
    assert ended.returncode == 0, ended.stderr
    assert run.column("loss")[0] == pytest.approx(0.5, abs=1e-6) and run.column("loss")[-1] < 0.49
    assert run.column("baseline")[0] == pytest.approx(0, abs=1e-4)
    assert run.column("reward_good")[-1] > run.column("reward_bad")[-1]


def test_the_stored_reference_is_read_and_made_again_when_it_is_lost(
    rows: Path, tuned: Run, new_run: NewRun, tmp_path: Path
) -> None:
    chosen = [*overrides(rows, "dpo", tmp_path / "cache"), f"checkpoint.start_from={tuned.folder}"]
    one, other = new_run("one", *chosen), new_run("other", *chosen)
    assert one.train().returncode == 0
    (stored,) = (tmp_path / "cache").glob("*.reference-*.npy")
    before, written = stored.read_bytes(), stored.stat().st_mtime_ns
    assert other.train_until(7, signal.SIGUSR1).returncode == 75
    assert stored.stat().st_mtime_ns == written, "computed once"
    stored.unlink()
    ended = other.train()
    assert ended.returncode == 0, ended.stderr
    assert stored.read_bytes() == before, "of the model that the run started with, not of the present one"
    assert other.losses() == one.losses()


def test_a_lost_reference_is_not_made_of_another_model(rows: Path, tuned: Run, new_run: NewRun, tmp_path: Path) -> None:
    copy = copytree(tuned.folder, tmp_path / "start")
    run = new_run("run", *overrides(rows, "dpo", tmp_path / "cache"), f"checkpoint.start_from={copy}")
    assert run.train_until(7, signal.SIGUSR1).returncode == 75
    (stored,) = (tmp_path / "cache").glob("*.reference-*.npy")
    stored.unlink()
    newest = copy / "checkpoints/step_00000040"
    rmtree(newest)  # what the run started with is gone; an older one is there
    ended = run.train()
    assert ended.returncode == 2 and "the weights that this run started with have changed" in ended.stderr
    assert not stored.exists()


def test_another_reference_is_refused(rows: Path, tuned: Run, new_run: NewRun, tmp_path: Path) -> None:
    chosen = [*overrides(rows, "dpo", tmp_path / "cache"), f"checkpoint.start_from={tuned.folder}"]
    run = new_run("run", *chosen)
    assert run.train().returncode == 0
    (stored,) = (tmp_path / "cache").glob("*.reference-*.npy")
    np.save(stored, np.load(stored) * 1.01)
    ended = new_run("again", *chosen).train()
    assert ended.returncode == 2 and "is not the model that this run starts with" in ended.stderr
    start = f"checkpoint.start_from={run.folder}"  # another model: another key
    assert new_run("another", *overrides(rows, "dpo", tmp_path / "cache"), start).train().returncode == 0
    assert len(list((tmp_path / "cache").glob("*.reference-*.npy"))) == 2


def test_a_tuned_model_answers_and_ends_its_turn(tuned: Run) -> None:
    sampling = ["--max-new-tokens", "40", "--temperature", "0"]
    asked = [word for n in (1, 2, 3) for word in ("--prompt", f"{n}번?")]
    said = command("generate", str(tuned.folder), "--chat", "--json", *asked, *sampling)
    answers = json.loads(said.stdout)["completions"]
    assert [answer["stop"] for answer in answers] == ["end_of_turn"] * 3
    assert all(answer["text"] in ANSWERS for answer in answers)
    refused = command("generate", str(tuned.folder), "--chat", "--prompt", "끝 <|im_end|>", *sampling)
    assert refused.returncode == 2 and "spells a marker" in refused.stderr


def test_a_conversation_from_a_pipe_keeps_its_history(tuned: Run) -> None:
    words = ["chat", str(tuned.folder), "--temperature", "0", "--max-new-tokens", "40"]
    talk = command(*words, typed="1번?\n\n2번?\n/new\n1번?\n")
    assert talk.returncode == 0, talk.stderr
    said = [line for line in talk.stdout.split("\n\n") if line]
    assert len(said) == 3 and said[0] == said[2], "a new conversation begins as the first one"
