"""Checkpoint directories as files: names, manifests, hashes, atomic renames, the pointer. Needs no torch.

A checkpoint is written under a temporary name next to its final one. Its manifest, which lists every file with size
and hash, is written last. Then everything is flushed to disk, and only after that the directory gets its final name and
``latest`` is updated. A directory without a valid manifest is therefore never a checkpoint.
"""

import os
import re
import shutil
import time
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import xxhash

from megatron_ko.errors import CheckpointError
from megatron_ko.log import get_logger
from megatron_ko.storage.files import TEMPORARY, hash_file, sync_folder, write_atomic

MANIFEST = "manifest.json"
LATEST = "latest"
SET_ASIDE = "set_aside"
_OWN_HASH = "manifest_xxh3_128"  # covers all other entries: a wrong number would silently read other samples
_OPTIONS = orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS
_NAME = re.compile(r"step_(\d+)")
_log = get_logger(__name__)


@dataclass(frozen=True)
class FileRecord:
    """Size in bytes and xxh3-128 hex digest of one file of a checkpoint."""

    bytes: int
    xxh3_128: str


@dataclass(frozen=True)
class Manifest:
    """The manifest of a checkpoint.

    Attributes:
        step, samples, tokens: progress of the run when it was saved.
        files: every other file in the directory, by relative path.
        layout: sizes of the parallel axes and of the world.
        state: the trainer's progress (``TrainState``).
        metrics: byte lengths of the metric files when it was saved.
        config: the resolved configuration.
        config_sha256, tokenizer: hash of the configuration and fingerprint of the tokenizer.
        versions: versions of the software that wrote it.
        created: seconds since the epoch.
    """

    step: int
    samples: int
    tokens: int
    files: dict[str, FileRecord]
    layout: dict[str, int | bool]
    state: dict[str, Any]
    metrics: dict[str, int]
    config: dict[str, Any]
    config_sha256: str
    tokenizer: str
    versions: dict[str, str]
    created: float
    complete: bool = True

    @property
    def total_bytes(self) -> int:
        """Total size of all files."""
        return sum(record.bytes for record in self.files.values())

    def to_json(self) -> bytes:
        """The text of ``manifest.json``: the manifest and its own hash."""
        content = orjson.loads(orjson.dumps(self))
        return orjson.dumps({**content, _OWN_HASH: _hash_content(content)}, option=_OPTIONS)


def name_of(step: int) -> str:
    """Directory name of the checkpoint of a step."""
    return f"step_{step:08d}"


def steps_in(checkpoints: Path) -> list[int]:
    """Steps that have a checkpoint directory, valid or not, newest first; compared as numbers, not as text."""
    if not checkpoints.is_dir():
        return []
    found = (_NAME.fullmatch(entry.name) for entry in checkpoints.iterdir() if entry.is_dir())
    return sorted((int(match[1]) for match in found if match), reverse=True)


def read_manifest(directory: Path) -> Manifest:
    """Read the manifest of a checkpoint directory.

    Raises:
        CheckpointError: it is missing, unreadable or incomplete.
    """
    try:
        content = orjson.loads((directory / MANIFEST).read_bytes())
        own_hash = content.pop(_OWN_HASH, None)
        if own_hash not in (None, _hash_content(content)):  # earlier versions did not write one
            raise CheckpointError("the checkpoint's manifest has been changed or damaged", got=directory)
        files = {name: FileRecord(**record) for name, record in content.pop("files").items()}
        manifest = Manifest(files=files, **content)
    except FileNotFoundError:
        raise CheckpointError("the checkpoint has no manifest", got=directory) from None
    except (orjson.JSONDecodeError, TypeError, KeyError, AttributeError) as error:
        raise CheckpointError("the checkpoint's manifest cannot be read", got=f"{directory}: {error}") from None
    if manifest.complete is not True:
        raise CheckpointError("the checkpoint is not complete", got=directory)
    return manifest


def _hash_content(content: dict[str, Any]) -> str:
    return xxhash.xxh3_128_hexdigest(orjson.dumps(content, option=_OPTIONS))


def problems_of(directory: Path, records: Iterable[tuple[str, FileRecord]], hashes: bool = True) -> list[str]:
    """Problems of the files of a checkpoint: missing files, wrong sizes and, if requested, wrong hashes."""
    problems = []
    for name, record in records:
        path = directory / name
        if not path.is_file():
            problems.append(f"{name} is missing")
        elif (size := path.stat().st_size) != record.bytes:
            problems.append(f"{name} has {size} bytes instead of {record.bytes}")
        elif hashes and hash_file(path) != record.xxh3_128:
            problems.append(f"{name} has a wrong hash")
    return problems


def wanted_steps(checkpoints: Path, step: int | None) -> list[int]:
    """Steps to look at for a checkpoint, newest first; only ``step`` where it is given.

    Raises:
        CheckpointError: there is none.
    """
    present = steps_in(checkpoints)
    if step is None and not present:
        raise CheckpointError("there is no checkpoint", got=checkpoints, remedy="train first, or give another folder")
    if step is not None and step not in present:
        known = ", ".join(map(str, present)) or "none"
        raise CheckpointError(f"there is no checkpoint of step {step}", got=checkpoints, expected=f"one of: {known}")
    return present if step is None else [step]


def newest_valid(checkpoints: Path, step: int | None = None) -> tuple[Path, Manifest]:
    """The newest checkpoint that matches its manifest, or the one of a given step.

    Damaged ones are reported and skipped, unless a step was requested.

    Raises:
        CheckpointError: there is none, or none is valid.
    """
    found = []
    for candidate in wanted_steps(checkpoints, step):
        directory = checkpoints / name_of(candidate)
        inspected = inspect(directory)
        if isinstance(inspected, Manifest):
            return directory, inspected
        found.append(inspected)
    raise none_valid(found)


def inspect(directory: Path) -> Manifest | str:
    """The manifest of a checkpoint whose files match it, hashes included; or what is wrong, which is also logged."""
    try:
        manifest = read_manifest(directory)
        problems = problems_of(directory, manifest.files.items())
    except CheckpointError as error:
        problems = [error.what]
    if not problems:
        return manifest
    problem = f"{directory.name}: {problems[0]}"
    _log.warning("damaged checkpoint passed over: %s", problem)
    return problem


def none_valid(problems: Iterable[str]) -> CheckpointError:
    """What to raise where no checkpoint is valid."""
    return CheckpointError("no checkpoint is valid", got="; ".join(problems), expected="one that matches its manifest")


def record_file(path: Path) -> FileRecord:
    """Flush a written file to disk, and return its size and hash."""
    with path.open("rb") as stream:
        os.fsync(stream.fileno())
    return FileRecord(bytes=path.stat().st_size, xxh3_128=hash_file(path))


def temporary_beside(checkpoints: Path, step: int) -> Path:
    """A new directory with a name that no reader mistakes for a checkpoint."""
    directory = checkpoints / f"{TEMPORARY}{name_of(step)}-{uuid.uuid4().hex[:12]}"
    directory.mkdir(parents=True)
    return directory


def publish(temporary: Path, manifest: Manifest) -> Path:
    """Give a complete directory its final name: manifest, flush, rename, pointer, in this order.

    Returns:
        The final directory. A damaged directory that had this name is replaced.
    """
    write_atomic(temporary / MANIFEST, manifest.to_json())
    for folder in {temporary, *(temporary / name for name in manifest.files)}:
        sync_folder(folder if folder.is_dir() else folder.parent)
    final = temporary.parent / name_of(manifest.step)
    if final.exists():
        remove(final)
    temporary.rename(final)
    sync_folder(final.parent)
    _point_to(final)
    return final


def _point_to(directory: Path) -> None:
    write_atomic(directory.parent / LATEST, directory.name.encode() + b"\n")


def latest_name(checkpoints: Path) -> str | None:
    """The name in the pointer file, or None."""
    pointer = checkpoints / LATEST
    return pointer.read_text(encoding="utf-8").strip() if pointer.is_file() else None


def remove(directory: Path) -> None:
    """Delete a checkpoint. It is renamed first, so that a kill halfway leaves nothing that looks like one."""
    if not directory.name.startswith(TEMPORARY):
        doomed = directory.with_name(f"{TEMPORARY}{directory.name}-{uuid.uuid4().hex[:12]}")
        directory.rename(doomed)
        directory = doomed
    shutil.rmtree(directory)


def remove_leftovers(checkpoints: Path) -> list[str]:
    """Delete files left over from interrupted saves and removals; returns the names."""
    if not checkpoints.is_dir():
        return []
    leftovers = [entry for entry in checkpoints.iterdir() if entry.name.startswith(TEMPORARY)]
    for entry in leftovers:
        shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    return sorted(entry.name for entry in leftovers)


def set_aside(checkpoints: Path, step: int) -> list[str]:
    """Move checkpoints newer than ``step`` aside, and point ``latest`` to ``step``; returns the names moved."""
    moved = []
    for newer in (found for found in steps_in(checkpoints) if found > step):
        target = checkpoints / SET_ASIDE / f"{name_of(newer)}-{time.time_ns()}"
        target.parent.mkdir(exist_ok=True)
        (checkpoints / name_of(newer)).rename(target)
        moved.append(target.name)
    _point_to(checkpoints / name_of(step))
    return sorted(moved)


@dataclass(frozen=True)
class Listed:
    """One row of ``megatron-ko checkpoint ls``; ``problems`` is empty if the checkpoint is valid."""

    name: str
    step: int
    tokens: int | None
    samples: int | None
    bytes: int | None
    layout: dict[str, int | bool] | None
    valid: bool
    latest: bool
    age_s: float | None
    problems: tuple[str, ...]


def list_checkpoints(checkpoints: Path, hashes: bool = True) -> list[Listed]:
    """Every checkpoint directory of a run, oldest first, each checked against its manifest."""
    latest = latest_name(checkpoints)
    return [_listed(checkpoints / name_of(step), step, latest, hashes) for step in reversed(steps_in(checkpoints))]


def _listed(directory: Path, step: int, latest: str | None, hashes: bool) -> Listed:
    try:
        manifest = read_manifest(directory)
    except CheckpointError as error:
        return Listed(
            name=directory.name, step=step, tokens=None, samples=None, bytes=None, layout=None, valid=False,
            latest=directory.name == latest, age_s=None, problems=(error.what,),
        )  # fmt: skip
    problems = problems_of(directory, manifest.files.items(), hashes)
    return Listed(
        name=directory.name, step=step, tokens=manifest.tokens, samples=manifest.samples, bytes=manifest.total_bytes,
        layout=manifest.layout, valid=not problems, latest=directory.name == latest,
        age_s=round(time.time() - manifest.created, 1), problems=tuple(problems),
    )  # fmt: skip
