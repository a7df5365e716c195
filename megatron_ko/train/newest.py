"""Finds the checkpoint that a run continues from: the newest one whose files match its manifest."""

from dataclasses import dataclass
from pathlib import Path

from megatron_ko.artifacts import checkpoints
from megatron_ko.errors import CheckpointError
from megatron_ko.log import get_logger
from megatron_ko.parallel.collectives import broadcast_object
from megatron_ko.parallel.groups import Groups
from megatron_ko.train.agreement import gather_from_ranks

_log = get_logger(__name__)


@dataclass(frozen=True)
class Found:
    """A verified checkpoint and its manifest."""

    directory: Path
    manifest: checkpoints.Manifest


def find_newest(folder: Path, groups: Groups, from_step: int | None = None) -> Found | None:
    """The newest checkpoint whose files match its manifest; None if the run has no checkpoints. A collective.

    Args:
        folder: the checkpoints of the run.
        groups: process groups; ranks share the reading.
        from_step: accept only the checkpoint of this step.

    Raises:
        CheckpointError: there are checkpoints, but none is valid; or there is none of the requested step.
    """
    problems: list[str] = []
    steps: list[int] = broadcast_object(checkpoints.steps_in(folder))  # another rank may not see the folder yet
    if from_step is not None and from_step not in steps:
        known = ", ".join(map(str, sorted(steps))) or "none"
        raise CheckpointError(f"there is no checkpoint of step {from_step}", got=folder, expected=f"one of: {known}")
    for step in steps if from_step is None else [from_step]:
        directory = folder / checkpoints.name_of(step)
        manifest, wrong = verify(directory, groups)
        if manifest is not None and not wrong:
            return Found(directory, manifest)
        problems.append(f"{directory.name}: {wrong[0]}")
        _log.warning("damaged checkpoint passed over: %s", problems[-1])
    if problems:
        raise CheckpointError(
            "the run has checkpoints, but none is valid",
            got="; ".join(problems),
            remedy="restore one from a copy, or move the folder away to start from the beginning",
        )
    return None


def verify(directory: Path, groups: Groups) -> tuple[checkpoints.Manifest | None, list[str]]:
    """The manifest of a checkpoint, if readable, and all problems. A collective: ranks share the reading."""
    manifest: checkpoints.Manifest | None = None
    try:
        manifest = checkpoints.read_manifest(directory)
        share = sorted(manifest.files.items())[groups.rank :: groups.world_size]
        mine = checkpoints.problems_of(directory, share)
    except CheckpointError as error:
        mine = [error.what]
    return manifest, [problem for part in gather_from_ranks(mine) for problem in part]
