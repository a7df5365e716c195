"""The same run on a CUDA device and on the CPU of the same machine: the same losses, and an exact resume."""

import shutil
from pathlib import Path

import pytest
import torch
from rehearsal import REHEARSED, Losses, Train

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.xdist_group("runs"),
    pytest.mark.skipif(not (torch.cuda.is_available() or REHEARSED), reason="no CUDA device on this machine"),
]


@pytest.mark.parametrize(("dtype", "tolerance"), [("fp32", 1e-3), ("bf16", 2e-2)])
def test_cuda_trains_like_the_cpu(trained: Losses, dtype: str, tolerance: float) -> None:
    words = ("precision.backend=portable", f"precision.dtype={dtype}")
    assert trained(*words) == pytest.approx(trained(*words, device="cpu"), rel=tolerance)


def test_resume_on_cuda_continues_within_rounding(train: Train, tmp_path: Path) -> None:
    whole = train(tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "resumed")
    shutil.rmtree(tmp_path / "resumed/checkpoints/step_00000008")
    resumed = train(tmp_path / "resumed")
    assert "resuming from" in resumed.log
    assert resumed.losses == pytest.approx(whole.losses, rel=1e-3)
