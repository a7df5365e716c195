"""Explains when a GPU runs out of memory: what was in it, and what to change."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from megatron_ko.errors import KoError
from megatron_ko.parallel.platform import get_platform

_ELSEWHERE = ("ALLOC_FAILED", "out of memory")


@contextmanager
def explaining_out_of_memory(directory: Path, rank: int, history: bool) -> Iterator[None]:
    """Turn running out of GPU memory into an error with a remedy, and write the memory's content to ``directory``.

    Args:
        directory: ``memory`` of the run.
        rank: number of this rank.
        history: whether all allocations are recorded for a snapshot.

    Raises:
        KoError: memory ran out.
    """
    platform = get_platform()
    if history:
        platform.record_allocations()
    try:
        yield
    except RuntimeError as error:  # PyTorch's allocator has its own class; cuBLAS and NCCL only a text
        if not isinstance(error, torch.OutOfMemoryError) and not any(words in str(error) for words in _ELSEWHERE):
            raise
        directory.mkdir(parents=True, exist_ok=True)
        (directory / f"rank{rank}.txt").write_text(f"{error}\n\n{platform.memory_summary()}", encoding="utf-8")
        if history:
            platform.dump_allocations(directory / f"rank{rank}.pickle")
        raise KoError(
            "a GPU is out of memory",
            got=f"{'. '.join(str(error).split('. ')[:2])} (all of it: {directory}/rank{rank}.txt)",
            remedy="lower training.micro_batch_size, set training.recompute=full, or spread the model: "
            "parallel.tensor, parallel.pipeline, parallel.distributed_optimizer=true",
        ) from error
