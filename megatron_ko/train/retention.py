"""Which checkpoints may be deleted after a save succeeded."""

from collections.abc import Collection
from pathlib import Path

from megatron_ko.artifacts.checkpoints import name_of, problems_of, read_manifest, remove, steps_in
from megatron_ko.errors import CheckpointError


def surplus(valid: Collection[int], damaged: Collection[int], keep: int) -> list[int]:
    """Steps to delete so that the ``keep`` newest valid checkpoints remain.

    Damaged checkpoints never count as kept ones. They are deleted once they are older than every kept one; a newer one
    stays for inspection until the run passes its step again.
    """
    kept = sorted(valid, reverse=True)[:keep]
    if not kept:
        return []
    return sorted(step for step in {*valid, *damaged} if step < kept[-1])


def apply_retention(checkpoints: Path, keep: int) -> list[int]:
    """Delete surplus checkpoints of a run, judged by manifest and file sizes; returns their steps."""
    valid: list[int] = []
    damaged: list[int] = []
    for step in steps_in(checkpoints):
        (valid if _looks_valid(checkpoints / name_of(step)) else damaged).append(step)
    doomed = surplus(valid, damaged, keep)
    for step in doomed:
        remove(checkpoints / name_of(step))
    return doomed


def _looks_valid(directory: Path) -> bool:
    try:
        return not problems_of(directory, read_manifest(directory).files.items(), hashes=False)
    except CheckpointError:
        return False
