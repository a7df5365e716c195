"""Training with experts, through the product: resumed, under other layouts, with metrics and warnings."""

import signal
from pathlib import Path

import pytest
from train_runs import NewRun

MOE = (
    "model.family=mixtral",
    "model.moe={num_experts: 4, top_k: 2, score: sigmoid, expert_bias: true, expert_bias_update_rate: 0.01}",
    "model.num_layers=2",
    "eval.interval=0",
    "training.steps=11",
)
EP2 = ("parallel.expert=2",)
TP2 = ("parallel.tensor=2", "parallel.sequence_parallel=true")


@pytest.mark.parametrize(
    "layout",
    [EP2, ("launch.ranks_per_node=2", *EP2, *TP2, "parallel.expert_tensor=1", "precision.dtype=bf16")],
    ids=["ep2", "ep2-tp2-bf16"],
)
def test_a_stopped_run_continues_to_the_last_bit(new_run: NewRun, layout: tuple[str, ...]) -> None:
    overrides = (*MOE, "training.steps=7", *layout)
    control, stopped = new_run("control", *overrides), new_run("stopped", *overrides)
    ended = control.train()
    assert ended.returncode == 0, ended.stderr
    assert stopped.train_until(3, signal.SIGTERM).returncode == 75
    resumed = stopped.train()
    assert resumed.returncode == 0, resumed.stderr
    assert stopped.losses() == control.losses()
    assert stopped.column("grad_norm") == control.column("grad_norm")
    assert stopped.lines("experts") == control.lines("experts")


def test_experts_move_between_any_numbers_of_ranks(new_run: NewRun) -> None:
    """Weights, moments and balancing biases; megatron-core's own experts cannot move from one rank to several."""
    layouts: tuple[tuple[str, ...], ...] = ((), EP2, (*TP2, *EP2, "parallel.expert_tensor=1"), ())
    control, moved = new_run("control", *MOE), new_run("moved", *MOE)
    assert control.train().returncode == 0
    for stop, layout in zip((2, 4, 6), layouts, strict=False):
        assert moved.train_until(stop, signal.SIGTERM, *layout).returncode == 75
    ended = moved.train(*layouts[-1])
    assert ended.returncode == 0, ended.stderr
    assert moved.column("samples") == control.column("samples")
    assert moved.column("loss") == pytest.approx(control.column("loss"), rel=1e-5)
    assert moved.column("expert_imbalance") == pytest.approx(control.column("expert_imbalance"), rel=2e-2)


def test_metrics_of_experts(new_run: NewRun, tmp_path: Path) -> None:
    aux = "model.moe={num_experts: 4, top_k: 2, z_loss_coeff: 0.001, capacity_factor: 1.0, starved_load: 0.9}"
    run = new_run("run", *MOE, aux, "training.steps=24")
    ended = run.train()
    assert ended.returncode == 0, ended.stderr
    last = run.lines("train")[-1]
    assert 1 <= last["expert_imbalance"] <= last["expert_imbalance_worst"] <= 4
    assert 0 <= last["expert_load_least"] <= 1 and 0 < last["expert_dropped"] < 0.5
    assert 1 < last["router_entropy"] < 1.3863 and last["router_aux_loss"] > 0.9 and last["router_z_loss"] > 0
    records = run.lines("experts")
    assert [record["step"] for record in records] == list(range(1, 25))
    for record in records:
        for loads, dropped in zip(record["loads"], record["dropped"], strict=True):
            assert len(loads) == 4 and sum(loads) == pytest.approx(4 * (1 - dropped), abs=1e-3)
    assert "less than 0.9 of an even load over 20 steps: expert" in ended.stderr
    dense = new_run("dense", "training.steps=2")
    assert dense.train().returncode == 0
    assert not (dense.folder / "metrics/experts.jsonl").exists()
    assert not any("expert" in name or "router" in name for name in dense.lines("train")[0])
