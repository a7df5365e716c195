"""Options that move time and memory and must not move losses: an optimizer in host memory, overlapped communication."""

from pathlib import Path

import pytest
import torch
from test_cuda import losses, run_file  # noqa: F401  (a fixture)

from megatron_ko.models.precision import transformer_engine_release

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine"),
]
on_two_with_engine = pytest.mark.skipif(
    torch.cuda.device_count() < 2 or transformer_engine_release() is None,
    reason="needs two CUDA devices and Transformer Engine",
)
TWO = ("launch.ranks_per_node=2", "precision.dtype=bf16")


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_an_optimizer_in_host_memory_learns_the_same(run_file: Path, tmp_path: Path, share: float) -> None:  # noqa: F811
    kept = losses(run_file, tmp_path / "kept", "precision.dtype=bf16")
    offloaded = losses(run_file, tmp_path / "offloaded", "precision.dtype=bf16", f"optim.offload={share}")
    assert [loss for loss, _ in offloaded] == pytest.approx([loss for loss, _ in kept], rel=1e-3)


@on_two_with_engine
def test_overlapped_tensor_parallelism_learns_the_same(run_file: Path, tmp_path: Path) -> None:  # noqa: F811
    layout = (*TWO, "parallel.tensor=2", "parallel.sequence_parallel=true")
    plain = losses(run_file, tmp_path / "plain", *layout)
    overlapped = losses(run_file, tmp_path / "overlapped", *layout, "parallel.overlap_tensor=true")
    assert [loss for loss, _ in overlapped] == pytest.approx([loss for loss, _ in plain], rel=1e-2)


@on_two_with_engine
def test_overlapped_experts_learn_the_same(run_file: Path, tmp_path: Path) -> None:  # noqa: F811
    layout = (*TWO, "model.family=mixtral", "model.moe.num_experts=4", "model.moe.top_k=2", "parallel.expert=2")
    plain = losses(run_file, tmp_path / "plain", *layout)
    overlapped = losses(run_file, tmp_path / "overlapped", *layout, "parallel.overlap_experts=true")
    assert [loss for loss, _ in overlapped] == pytest.approx([loss for loss, _ in plain], rel=1e-2)
