"""Checks whether a checkpoint and a configuration fit together, and what has changed between them."""

import json
import math
from collections.abc import Iterator
from typing import Any

from pydantic_core import to_jsonable_python

from megatron_ko.artifacts.checkpoints import Manifest
from megatron_ko.config import RunConfig
from megatron_ko.config.optim import OptimConfig
from megatron_ko.config.section import Resume
from megatron_ko.config.tree import default_at, locate, resume_of
from megatron_ko.errors import CheckpointError, ConfigError
from megatron_ko.train.schedule import lr_at


def is_bound(path: str) -> bool:
    """Whether weights depend on the value at a dotted path."""
    return resume_of(RunConfig, path) is Resume.BOUND


def differences(saved: dict[str, Any], present: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Dotted path -> (saved, present) of every value that differs.

    An option that is newer than the checkpoint counts as saved with its default, but not in a section that was absent.
    """
    before, now = dict(_flat(saved)), dict(_flat(present))
    newer = [path for path in now if path not in before and not _was_absent(path.rpartition(".")[0], before)]
    earlier = {path: to_jsonable_python(default_at(RunConfig, path)) for path in newer}
    pairs = {path: ({**earlier, **before}.get(path), now.get(path)) for path in {**before, **now}}
    return {path: pair for path, pair in pairs.items() if pair[0] != pair[1]}


def _was_absent(section: str, before: dict[str, Any]) -> bool:
    """Whether a section that may be left out was left out."""
    present = not section or any(path.startswith(section + ".") for path in before)
    return not present and default_at(RunConfig, section) is None and not _is_required(section)


def _is_required(section: str) -> bool:
    holder, _, name = section.rpartition(".")
    holders = locate(RunConfig, holder.split(".")).sections if holder else (RunConfig,)
    return all(one.model_fields[name].is_required() for one in holders if name in one.model_fields)


def check_resumable(config: RunConfig, tokenizer: str, manifest: Manifest, versions: dict[str, str]) -> list[str]:
    """Refuse a checkpoint that this configuration or installation cannot continue.

    Returns:
        One line for every other difference in configuration or software that can change results.

    Raises:
        ConfigError: the weights do not fit, or belong to another tokenizer.
        CheckpointError: it was written by a newer megatron-core.
    """
    changed = check_bound(config, manifest, tokenizer)
    _check_version(manifest, versions)
    software = differences({"versions": manifest.versions}, {"versions": versions})
    return [
        f"{path}: {old} -> {new}"
        for path, (old, new) in {**changed, **software}.items()
        if path.startswith("versions.") or resume_of(RunConfig, path) is Resume.FREE
    ]


def consequences(manifest: Manifest, config: RunConfig) -> list[str]:
    """Non-obvious effects of configuration changes: on the data order and on the next learning rate."""
    saved, present = manifest.config, config.model_dump(mode="json")
    changed = differences(saved, present)
    lines = []
    orders = {"data.sequence_length", "data.split", "run.seed"}
    if "read" not in manifest.state.get("position", {}):  # of an earlier version
        orders.add("data.sources")
    if renumbering := sorted(orders & changed.keys()):
        names = ", ".join(renumbering)
        lines.append(f"{names}: samples are numbered anew; some of the corpus may be read twice, some not at all")
    if "data.split" in changed:
        lines.append("data.split: documents change sides: validation may see text that was trained on")
    if "data.sources" in changed and "read" in manifest.state.get("position", {}):
        lines.append("data.sources: each source goes on where it was left; a new one begins at its beginning")
    before = _next_rate(manifest.step, saved)
    now = _next_rate(manifest.step, present)
    if before is not None and now is not None and not math.isclose(before, now, rel_tol=1e-9):
        lines.append(f"the learning rate of step {manifest.step + 1} is {now:.3g}; it would have been {before:.3g}")
    return lines


def _next_rate(step: int, config: dict[str, Any]) -> float | None:
    """Learning rate of the step after ``step``; None for a configuration of another version."""
    try:
        return lr_at(step, OptimConfig.model_validate_json(json.dumps(config["optim"])), config["training"]["steps"])
    except (KeyError, ValueError):
        return None


def check_bound(config: RunConfig, manifest: Manifest, tokenizer: str | None = None) -> dict[str, tuple[Any, Any]]:
    """Refuse a checkpoint of another model; the tokenizer is compared if it is known.

    Returns:
        The allowed differences.

    Raises:
        ConfigError: the weights do not fit, or belong to another tokenizer.
    """
    changed = differences(manifest.config, config.model_dump(mode="json"))
    refused = [f"{path}: {old} -> {new}" for path, (old, new) in changed.items() if is_bound(path)]
    if tokenizer is not None and manifest.tokenizer != tokenizer:
        refused.append(f"tokenizer fingerprint: {manifest.tokenizer[:16]} -> {tokenizer[:16]}")
    if refused:
        raise ConfigError(
            f"the run directory holds a checkpoint of step {manifest.step} that does not fit this configuration",
            got="; ".join(refused),
            expected="the values that the run was started with",
            remedy="set them back, or choose another run.dir",
        )
    return changed


def _check_version(manifest: Manifest, versions: dict[str, str]) -> None:
    wrote, reads = manifest.versions.get("megatron_core", "0"), versions["megatron_core"]
    if _minor(wrote) > _minor(reads):
        raise CheckpointError(
            "the checkpoint was written by a newer megatron-core, whose format this one cannot read",
            got=f"written by {wrote}, this is {reads}",
            remedy=f"install megatron-core {wrote} (Python 3.12 or newer)",
        )


def _minor(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".")[:2] if part.isdigit())


def _flat(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value
