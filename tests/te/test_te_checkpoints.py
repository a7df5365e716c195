"""Runs of the product on Transformer Engine's layers: what one back end saves, the other continues with; resuming."""

import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from engine import without_kernels
from train_runs import Run, make_corpus

RECIPES = {
    "fp32": ("precision.dtype=fp32",),
    "bf16": ("precision.dtype=bf16", "parallel.overlap_grad_reduce=true", "parallel.overlap_param_gather=true"),
    "moe": ("precision.dtype=fp32", "model.family=mixtral", "model.moe.num_experts=4", "model.moe.top_k=2"),
}
EXPERTS = RECIPES["moe"][1:]
STEPS = 6
NewRun = Callable[..., Run]


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``tokenizer/``, ``corpus.bin`` and ``tiny.yaml``."""
    return make_corpus(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def new_run(tiny: Path, tmp_path: Path) -> NewRun:
    """Makes runs of six steps below this test's folder: ``new_run(name, *overrides)``."""
    batch = ("training.global_batch_size=4", "training.micro_batch_size=2")
    short = (f"training.steps={STEPS}", *batch, "checkpoint.interval=3", "eval.interval=0")

    def make(name: str, *overrides: str) -> Run:
        return Run(tiny / "tiny.yaml", tmp_path / name, (*short, *overrides))

    return make


def train(run: Run, backend: str, *more: str) -> None:
    """Train on the layers of a back end. The portable one runs as on a machine that has no kernels."""
    if backend == "portable":
        with without_kernels():
            ended = run.train(*more)
    else:
        ended = run.train(*more)
    assert ended.returncode == 0, ended.stderr
    assert f"{backend} layers" in ended.stderr


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("first", ["transformer_engine", "portable"])
def test_a_checkpoint_is_continued_by_the_other_back_end(name: str, first: str, new_run: NewRun) -> None:
    then = "portable" if first == "transformer_engine" else "transformer_engine"
    control, moved = new_run("control", *RECIPES[name]), new_run("moved", *RECIPES[name])
    train(control, then)
    train(moved, first, f"training.steps={STEPS // 2}", "optim.schedule=constant")
    train(moved, then, "optim.schedule=constant")
    tolerance = 1e-5 if "precision.dtype=fp32" in RECIPES[name] else 2e-3
    print([(one, other) for (_, one), (_, other) in zip(moved.losses(), control.losses(), strict=True)])
    assert [step for step, _ in moved.losses()] == list(range(1, STEPS + 1))
    assert moved.column("loss") == pytest.approx(control.column("loss"), rel=tolerance)
    assert moved.column("grad_norm") == pytest.approx(control.column("grad_norm"), rel=10 * tolerance)


@pytest.mark.parametrize(
    "recipe",
    [
        ("precision.recipe=fp8_delayed",),
        ("precision.recipe=mxfp8", "precision.fp8_weights=true"),
        ("precision.recipe=mxfp8", *EXPERTS),
        ("precision.recipe=fp8_current", *EXPERTS),
    ],
    ids=["fp8_delayed", "mxfp8-weights", "moe-mxfp8", "moe-fp8_current"],
)
def test_a_run_that_was_stopped_continues_bit_for_bit(recipe: tuple[str, ...], new_run: NewRun) -> None:
    control, stopped = (new_run(name, "precision.dtype=bf16", *recipe) for name in ("control", "stopped"))
    train(control, "transformer_engine")
    assert stopped.train_until(2, signal.SIGTERM).returncode == 75
    assert stopped.last_step() < STEPS
    train(stopped, "transformer_engine")
    assert stopped.losses() == control.losses()
    assert stopped.column("grad_norm") == control.column("grad_norm")
