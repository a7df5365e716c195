"""Decides which checkpoints may be deleted after a successful save."""

from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

from megatron_ko.artifacts.checkpoints import Manifest, name_of, problems_of, read_manifest, steps_in
from megatron_ko.artifacts.pins import remove_unless_pinned
from megatron_ko.errors import CheckpointError


def surplus(valid: Collection[int], damaged: Collection[int], keep: int, spared: Collection[int] = ()) -> list[int]:
    """Steps to delete so that the ``keep`` newest valid checkpoints and the ``spared`` ones remain.

    Damaged checkpoints do not count as kept. They are deleted once they are older than all kept ones; a newer one stays
    for inspection until the run passes its step again.
    """
    kept = sorted(valid, reverse=True)[:keep]
    if not kept:
        return []
    return sorted(step for step in {*valid, *damaged} if step < kept[-1] and step not in spared)


def apply_retention(checkpoints: Path, keep: int, keep_every: int | None = None, best: int | None = None) -> list[int]:
    """Delete surplus checkpoints of a run, checking manifest and file sizes only; returns their steps.

    The newest checkpoint from before steps were skipped is spared, so that a broken run can go back to it; and one that
    is being read stays until the next save.
    """
    valid = _valid_manifests(checkpoints)
    spared = {step for step in valid if step == best or (keep_every and step % keep_every == 0)}
    if (sound := newest_sound(valid)) is not None:
        spared.add(sound)
    doomed = surplus(valid, set(steps_in(checkpoints)) - valid.keys(), keep, spared)
    return [step for step in doomed if remove_unless_pinned(checkpoints / name_of(step))]


def newest_sound(manifests: dict[int, Manifest]) -> int | None:
    """The newest step whose checkpoint was not saved while updates were being skipped."""
    return max((step for step, found in manifests.items() if not found.state.get("consecutive_skips")), default=None)


def sound_step(checkpoints: Path) -> int | None:
    """The step that a run whose updates are skipped should go back to; None if nothing was saved before."""
    return newest_sound(_valid_manifests(checkpoints))


def _valid_manifests(checkpoints: Path) -> dict[int, Manifest]:
    """Manifests of the checkpoints whose files exist in the right sizes, by step."""
    found = {}
    for step in steps_in(checkpoints):
        with suppress(CheckpointError):
            manifest = read_manifest(checkpoints / name_of(step))
            if not problems_of(checkpoints / name_of(step), manifest.files.items(), hashes=False):
                found[step] = manifest
    return found
