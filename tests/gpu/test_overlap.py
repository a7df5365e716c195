"""Options that move time and memory and must not move losses: an optimizer in host memory, overlapped communication."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from gpu.workers import steps_of
from rehearsal import Losses

from megatron_ko.models.precision import transformer_engine_release

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.xdist_group("runs"),
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine"),
]
on_two_with_engine = pytest.mark.skipif(
    torch.cuda.device_count() < 2 or transformer_engine_release() is None,
    reason="needs two CUDA devices and Transformer Engine",
)
TWO = ("launch.ranks_per_node=2", "precision.dtype=bf16")


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_an_optimizer_in_host_memory_learns_the_same(trained: Losses, share: float) -> None:
    assert trained(f"optim.offload={share}") == pytest.approx(trained(), rel=1e-3)


@on_two_with_engine
def test_overlapped_tensor_parallelism_learns_the_same(run_file: Path, tmp_path: Path) -> None:
    layout = (*TWO, "parallel.tensor=2", "parallel.sequence_parallel=true")
    plain = losses(run_file, tmp_path / "plain", *layout)
    overlapped = losses(run_file, tmp_path / "overlapped", *layout, "parallel.overlap_tensor=true")
    assert overlapped == pytest.approx(plain, rel=1e-2)


@on_two_with_engine
def test_overlapped_experts_learn_the_same(run_file: Path, tmp_path: Path) -> None:
    layout = (*TWO, "model.family=mixtral", "model.moe.num_experts=4", "model.moe.top_k=2", "parallel.expert=2")
    plain = losses(run_file, tmp_path / "plain", *layout)
    overlapped = losses(run_file, tmp_path / "overlapped", *layout, "parallel.overlap_experts=true")
    assert overlapped == pytest.approx(plain, rel=1e-2)


def losses(run_file: Path, run: Path, *words: str) -> list[float]:
    """Of a run that starts its ranks itself, by the command."""
    command = [sys.executable, "-m", "megatron_ko.cli.main", "train", str(run_file), f"run.dir={run}", *words]
    subprocess.run(command, check=True, env={**os.environ, "MEGATRON_KO_DEVICE": "cuda"}, timeout=300)
    return [step["loss"] for step in steps_of(run)]
