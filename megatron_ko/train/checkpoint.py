"""Saving and restoring the whole state of a run: weights, optimizer, RNG, progress, metric position.

Tensors go through megatron-core's distributed checkpoints, which any parallel layout can read. The files around them
follow ``models.checkpoint_files``: temporary name, manifest, flush, rename, pointer, and only then retention.
"""

import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedTensor, is_main_replica
from megatron.core.dist_checkpointing.strategies.fully_parallel import FullyParallelSaveStrategyWrapper
from megatron.core.optimizer import ChainedOptimizer

from megatron_ko.artifacts import checkpoints
from megatron_ko.config import RunConfig
from megatron_ko.errors import CheckpointError
from megatron_ko.log import get_logger
from megatron_ko.models.architectures import DTYPES
from megatron_ko.models.weights import load_weights, sharded_weights
from megatron_ko.parallel.collectives import broadcast_object
from megatron_ko.parallel.groups import Groups
from megatron_ko.parallel.seed import rng_state, seed_everything, set_rng_state
from megatron_ko.plan.params import count_parameters
from megatron_ko.train.agreement import gather_from_ranks, on_all_ranks
from megatron_ko.train.lineage import Identity, layout_of, record_checkpoint
from megatron_ko.train.resume import check_resumable
from megatron_ko.train.retention import apply_retention
from megatron_ko.train.state import TrainState
from megatron_ko.train.writer import InProcessSave

MODEL, RNG = "model", "rng.pt"
_METADATA = {"distrib_optim_sharding_type": "fully_reshardable", "chained_optim_avoid_prefix": True}
_SPARE_BYTES = 1 << 20  # for manifests and indices
_log = get_logger(__name__)


@dataclass(frozen=True)
class Found:
    """A checkpoint that was verified, and what it says of itself."""

    directory: Path
    manifest: checkpoints.Manifest


@dataclass(frozen=True)
class Restored:
    """What a restored checkpoint says besides tensors.

    Attributes:
        state: progress of the run.
        metrics: byte lengths of the metric files.
    """

    state: TrainState
    metrics: dict[str, int]


class Checkpointer:
    """Writes and reads the checkpoints of one run. ``save`` and ``restore`` are collectives: all ranks call them.

    Args:
        config: the resolved configuration.
        groups: process groups.
        model: model chunks in their data-parallel wrapper.
        optimizer: the optimizer over them.
        identity: hashes and versions that the manifest names.
    """

    def __init__(
        self,
        config: RunConfig,
        groups: Groups,
        model: list[torch.nn.Module],
        optimizer: ChainedOptimizer,
        identity: Identity,
    ) -> None:
        self._config, self._groups, self._identity = config, groups, identity
        self._wrapped, self._optimizer = model, optimizer
        self._model = [chunk.module for chunk in model]
        self._folder = config.run.dir / "checkpoints"
        self._layout = layout_of(config, groups.world_size)

    def check_room(self) -> None:
        """See now whether a checkpoint can be written, not after hours of training. A collective.

        Raises:
            CheckpointError: the disk is too full, or the folder cannot be made.
        """
        weight = torch.finfo(DTYPES[self._config.precision.dtype]).bits // 8
        master_and_moments = 3 * 4
        needed = count_parameters(self._config.model).total * (weight + master_and_moments)
        first = self._groups.rank == 0
        on_all_ranks("room for a checkpoint", lambda: self._check_room(needed) if first else None)

    def save(self, state: TrainState, metrics: dict[str, int]) -> None:
        """Save the present state, then delete what ``checkpoint.keep`` does not cover.

        Args:
            state: progress.
            metrics: byte lengths of the metric files; only rank 0's count.

        Raises:
            CheckpointError: it could not be written; older checkpoints are untouched and nothing half-written is left.
        """
        started = time.perf_counter()
        first = self._groups.rank == 0
        if self._config.parallel.overlap_param_gather:
            for chunk in self._wrapped:  # otherwise the update of other ranks comes with the next forward pass
                chunk.start_param_sync(force_sync=True)
        tensors = self._sharded_state(is_loading=False)
        needed = sum(gather_from_ranks(_bytes_of(tensors)))
        made = on_all_ranks("room for a checkpoint", lambda: self._make_room(state.step, needed) if first else None)
        temporary = broadcast_object(made)
        assert temporary is not None, "rank 0 made it, or all ranks have failed"
        try:
            on_all_ranks("writing weights and optimizer", lambda: self._write_tensors(tensors, temporary / MODEL))
            random = gather_from_ranks(rng_state())
            on_all_ranks(
                "writing RNG states", lambda: torch.save({"ranks": random}, temporary / RNG) if first else None
            )
            parts = gather_from_ranks(on_all_ranks("reading back", lambda: self._record_files(temporary)))
            records = {name: record for part in parts for name, record in part.items()}
            manifest = self._manifest(state, metrics, records)
            on_all_ranks("publishing", lambda: self._publish(temporary, manifest) if first else None)
        finally:
            if first and temporary.exists():
                shutil.rmtree(temporary)
        if first:
            apply_retention(self._folder, self._config.checkpoint.keep)
            name, seconds = checkpoints.name_of(state.step), time.perf_counter() - started
            _log.info("saved %s: %.1f MiB in %.2f s", name, manifest.total_bytes / 2**20, seconds)

    def _check_room(self, needed: int) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        needed += _SPARE_BYTES
        free = shutil.disk_usage(self._folder).free
        if free < needed:
            raise OSError(f"the disk of {self._folder} has {free} free bytes, a checkpoint needs {needed}")

    def _make_room(self, step: int, needed: int) -> Path:
        self._check_room(needed)
        temporary = checkpoints.temporary_beside(self._folder, step)
        (temporary / MODEL).mkdir()
        return temporary

    def _sharded_state(self, is_loading: bool) -> dict[str, Any]:
        state = sharded_weights(self._model)
        optimizer = self._optimizer.sharded_state_dict(state, is_loading=is_loading, metadata=_METADATA)
        return {**state, "optimizer": optimizer}

    def _write_tensors(self, tensors: dict[str, Any], directory: Path) -> None:
        strategy: Any = InProcessSave()
        if self._groups.dp_size > 1:
            # Data-parallel ranks hold the same weights: each writes a part of them.
            strategy = FullyParallelSaveStrategyWrapper(strategy, self._groups.pg.dp_cp)
        dist_checkpointing.save(tensors, str(directory), strategy)

    def _record_files(self, temporary: Path) -> dict[str, checkpoints.FileRecord]:
        """Size and hash of the files that this rank wrote; everything shared counts as rank 0's."""
        rank, found = self._groups.rank, {}
        for path in sorted(entry for entry in temporary.rglob("*") if entry.is_file()):
            owner = path.name.split("_")[2] if path.name.startswith("__") else "0"
            if owner == str(rank):
                found[str(path.relative_to(temporary))] = checkpoints.record_file(path)
        return found

    def _publish(self, temporary: Path, manifest: checkpoints.Manifest) -> None:
        checkpoints.publish(temporary, manifest)
        record_checkpoint(self._config.run.dir, manifest)

    def _manifest(
        self, state: TrainState, metrics: dict[str, int], records: dict[str, checkpoints.FileRecord]
    ) -> checkpoints.Manifest:
        return checkpoints.Manifest(
            step=state.step,
            samples=state.samples,
            tokens=state.tokens,
            files=records,
            layout=self._layout,
            state=state.to_dict(),
            metrics=metrics,
            config=self._config.model_dump(mode="json"),
            config_sha256=self._identity.config_sha256,
            tokenizer=self._identity.tokenizer,
            versions=self._identity.versions,
            created=time.time(),
        )

    def restore(self, found: Found) -> Restored:
        """Load a checkpoint into model, optimizer and RNG, and say from where.

        Returns:
            What it says about the run.

        Raises:
            CheckpointError: its weights cannot be read.
            ConfigError: the configuration does not fit it.
        """
        directory, manifest = found.directory, found.manifest
        changed = check_resumable(self._config, self._identity.tokenizer, manifest, self._identity.versions)
        self._load_tensors(directory / MODEL)
        exact = {**self._layout, **manifest.layout} == self._layout  # an axis that it does not name was not there yet
        if exact:
            set_rng_state(torch.load(directory / RNG, weights_only=True)["ranks"][self._groups.rank])
        else:
            seed_everything(self._config.run.seed + manifest.step, self._groups)
        for line in changed:
            _log.warning("changed since the checkpoint: %s", line)
        _log.info("resuming from %s: %d samples, %d tokens", directory, manifest.samples, manifest.tokens)
        if not exact:
            _log.warning("the layout changed, so the run does not continue bit for bit: same samples, RNG seeded anew")
            _log.warning("  saved under %s, now %s", manifest.layout, self._layout)
        return Restored(TrainState.from_dict(manifest.state), manifest.metrics)

    def _load_tensors(self, directory: Path) -> None:
        load_weights(self._model, directory, states=True)
        wanted = {"optimizer": self._sharded_state(is_loading=True)["optimizer"]}
        loaded = dist_checkpointing.load(wanted, str(directory))
        self._optimizer.load_state_dict(loaded["optimizer"])


def find_newest(folder: Path, groups: Groups) -> Found | None:
    """The newest checkpoint whose files are as its manifest says, if the run has any. A collective.

    Raises:
        CheckpointError: there are checkpoints, but none is valid.
    """
    problems: list[str] = []
    steps: list[int] = broadcast_object(checkpoints.steps_in(folder))  # another rank may not see the folder yet
    for step in steps:
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
    """The manifest of a checkpoint, where it is readable, and what is wrong. A collective: ranks share the reading."""
    manifest: checkpoints.Manifest | None = None
    try:
        manifest = checkpoints.read_manifest(directory)
        share = sorted(manifest.files.items())[groups.rank :: groups.world_size]
        mine = checkpoints.problems_of(directory, share)
    except CheckpointError as error:
        mine = [error.what]
    return manifest, [problem for part in gather_from_ranks(mine) for problem in part]


def _bytes_of(tensors: dict[str, Any]) -> int:
    """Bytes that this rank's main replicas take."""
    own = (part for part in nested_values(tensors) if isinstance(part, ShardedTensor) and part.data is not None)
    return sum(part.data.nbytes for part in own if is_main_replica(part.replica_id))
