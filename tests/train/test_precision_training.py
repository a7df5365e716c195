"""Training runs with a low-precision recipe: continued to the last bit, or refused before they begin."""

import pytest
from train_runs import NewRun, assert_a_stop_changes_nothing

EMULATED = ("precision.recipe=mxfp8", "precision.mxfp8.emulate=true")


def test_an_emulated_run_continues_bit_for_bit(new_run: NewRun) -> None:
    overrides = (
        *EMULATED,
        "precision.dtype=bf16",
        "precision.fp8_format=hybrid",
        "precision.first_layers_high=1",
        "model.hidden_dropout=0.1",
        "launch.ranks_per_node=2",
        "model.num_layers=2",
        "training.steps=8",
        "eval.interval=4",
    )
    control, stopped = new_run("control", *overrides), new_run("stopped", *overrides)
    assert_a_stop_changes_nothing(control, stopped)
    # It is another training than without the recipe, and not far from it.
    plain = new_run("plain", "precision.dtype=bf16", *overrides[5:])
    assert plain.train().returncode == 0
    assert plain.losses() != control.losses()
    assert control.column("loss") == pytest.approx(plain.column("loss"), rel=0.02)


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (("precision.recipe=mxfp8", "precision.dtype=bf16"), "there is no CUDA device"),
        ((*EMULATED, "model.ffn_hidden_size=72"), "a width of 64 or 96"),
    ],
)
def test_what_cannot_run_ends_with_2_and_the_remedy(new_run: NewRun, overrides: tuple[str, ...], told: str) -> None:
    run = new_run("refused", *overrides)
    ended = run.train()
    assert ended.returncode == 2 and told in ended.stderr and "remedy" in ended.stderr
    assert not run.checkpoints
