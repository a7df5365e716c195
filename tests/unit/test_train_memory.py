"""An exhausted GPU is told as something to repair, with what its memory held."""

from pathlib import Path

import pytest
import torch

from megatron_ko.errors import EXIT_USER_ERROR, KoError
from megatron_ko.train.out_of_memory import explaining_out_of_memory


@pytest.mark.parametrize("history", [True, False])
def test_running_out_of_memory_says_what_helps(tmp_path: Path, history: bool) -> None:
    message = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has 1 GiB free."
    with (
        pytest.raises(KoError, match=r"out of memory[\s\S]*2\.00 GiB[\s\S]*micro_batch_size") as caught,
        explaining_out_of_memory(tmp_path / "memory", 3, history),
    ):
        raise torch.OutOfMemoryError(message)
    assert caught.value.exit_code == EXIT_USER_ERROR
    assert "Tried to allocate" in (tmp_path / "memory/rank3.txt").read_text(encoding="utf-8")
