"""Saves and restores the whole state of a run: weights, optimizer, RNG, progress, metric position.

A save has three steps. *Stage* collects references to the state, and everything that ranks must exchange about it.
*Persist* writes files under a temporary name and flushes them. *Commit* renames them into place, updates the pointer,
and only then deletes older checkpoints (``artifacts.checkpoints``). The ranks use a separate process group, which no
training step uses. Tensors are saved as megatron-core's distributed checkpoints, which any parallel layout can read.
"""

import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.core import CheckpointingConfig, save_config
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedTensor, is_main_replica
from megatron.core.dist_checkpointing.strategies.async_utils import AsyncRequest
from megatron.core.dist_checkpointing.strategies.fully_parallel import FullyParallelSaveStrategyWrapper

from megatron_ko.artifacts import checkpoints
from megatron_ko.config import RunConfig
from megatron_ko.log import get_logger
from megatron_ko.models.architectures import DTYPES
from megatron_ko.parallel.collectives import broadcast_object
from megatron_ko.parallel.groups import Groups
from megatron_ko.parallel.seed import rng_state, seed_everything, set_rng_state
from megatron_ko.plan.params import trained_parameters
from megatron_ko.train.agreement import gather_from_ranks, on_all_ranks
from megatron_ko.train.lineage import Identity, layout_of, record_checkpoint
from megatron_ko.train.newest import Found
from megatron_ko.train.resume import check_resumable, consequences
from megatron_ko.train.retention import apply_retention
from megatron_ko.train.state import TrainState
from megatron_ko.train.state_parts import StatePart
from megatron_ko.train.tensor_files import InProcessSave

MODEL, RNG = "model", "rng.pt"
FORMAT = CheckpointingConfig("torch_dist", 1)
_SPARE_BYTES = 1 << 20  # for manifests and indices
_log = get_logger(__name__)
T = TypeVar("T")
Files = dict[str, checkpoints.FileRecord]


@dataclass(frozen=True)
class Staged:
    """A staged state, and where it is written.

    Attributes:
        folder: the temporary folder.
        write: writes this rank's tensors.
        random: RNG states of all ranks.
        state: progress, in plain types.
        metrics: byte lengths of the metric files.
        began: when the save began (``time.perf_counter``).
    """

    folder: Path
    write: AsyncRequest
    random: list[dict[str, Any]]
    state: TrainState
    metrics: dict[str, int]
    began: float


@dataclass(frozen=True)
class Restored:
    """The content of a restored checkpoint, except tensors.

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
        parts: the parts of the state whose tensors are saved.
        identity: hashes and versions for the manifest.
    """

    def __init__(self, config: RunConfig, groups: Groups, parts: Sequence[StatePart], identity: Identity) -> None:
        self._config, self._groups, self._parts, self._identity = config, groups, parts, identity
        self._own = torch.distributed.new_group(backend="gloo")
        self._folder = config.run.dir / "checkpoints"
        self._layout = layout_of(config, groups.world_size)

    def check_room(self) -> None:
        """Check now, not after hours of training, whether a checkpoint can be written. A collective.

        Raises:
            CheckpointError: the disk is too full, or the folder cannot be created.
        """
        weight = torch.finfo(DTYPES[self._config.precision.dtype]).bits // 8
        master_and_moments = 3 * 4
        needed = trained_parameters(self._config) * (weight + master_and_moments)
        self._on_rank_0("room for a checkpoint", lambda: self._check_room(needed))

    def save(self, state: TrainState, metrics: dict[str, int]) -> None:
        """Save the current state, then delete checkpoints that ``checkpoint.keep`` does not cover.

        Args:
            state: progress.
            metrics: byte lengths of the metric files; only rank 0's are used.

        Raises:
            CheckpointError: it could not be written; older checkpoints are untouched and no partial files are left.
        """
        staged = self.stage(state, metrics)
        self.commit(staged, self.persist(staged))

    def stage(self, state: TrainState, metrics: dict[str, int]) -> Staged:
        """Collect the state and make room for it. Tensors are not copied, so they must not change until it is saved."""
        began = time.perf_counter()
        tensors = {name: value for part in self._parts for name, value in part.sharded().items()}
        needed = sum(gather_from_ranks(_bytes_of(tensors), self._own))
        made = self._on_rank_0("room for a checkpoint", lambda: self._make_room(state.step, needed))
        folder = broadcast_object(made, group=self._own)
        assert folder is not None, "rank 0 made it, or all ranks have failed"
        with self._removing_on_failure(folder):
            write = on_all_ranks("preparing tensors", lambda: self._prepare(tensors, folder / MODEL), self._own)
            random = gather_from_ranks(rng_state(), self._own)
        return Staged(folder, write, random, TrainState.from_dict(state.to_dict()), dict(metrics), began)

    def persist(self, staged: Staged) -> Files:
        """Write and flush every file. Returns size and hash of the files of this rank, read back from disk."""
        folder = staged.folder
        with self._removing_on_failure(folder):
            write = staged.write
            on_all_ranks("writing weights and optimizer", lambda: write.async_fn(*write.async_fn_args), self._own)
            self._on_rank_0("writing RNG states", lambda: torch.save({"ranks": staged.random}, folder / RNG))
            # megatron-core's own finalisation would block all ranks.
            self._on_rank_0("naming their format", lambda: save_config(FORMAT, str(folder / MODEL)))
            return on_all_ranks("reading back", lambda: self._record_files(folder), self._own)

    def commit(self, staged: Staged, files: Files) -> None:
        """Give the checkpoint its final name."""
        records = {name: record for part in gather_from_ranks(files, self._own) for name, record in part.items()}
        manifest = self._manifest(staged.state, staged.metrics, records)
        with self._removing_on_failure(staged.folder):
            self._on_rank_0("publishing", lambda: self._publish(staged.folder, manifest))
        if self._groups.rank == 0:
            settings = self._config.checkpoint
            best = staged.state.best_step if settings.keep_best else None
            apply_retention(self._folder, settings.keep, settings.keep_every, best)
            name, seconds = checkpoints.name_of(staged.state.step), time.perf_counter() - staged.began
            _log.info("saved %s: %.1f MiB in %.2f s", name, manifest.total_bytes / 2**20, seconds)

    def _on_rank_0(self, what: str, action: Callable[[], T]) -> T | None:
        """Run an action on rank 0; if it fails, all ranks fail."""
        return on_all_ranks(what, action if self._groups.rank == 0 else lambda: None, self._own)

    @contextmanager
    def _removing_on_failure(self, folder: Path) -> Iterator[None]:
        """Remove partial files if the block fails."""
        try:
            yield
        except BaseException:
            if self._groups.rank == 0 and folder.exists():
                shutil.rmtree(folder)
            raise

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

    def _prepare(self, tensors: dict[str, Any], directory: Path) -> AsyncRequest:
        strategy: Any = InProcessSave(self._own)
        if self._groups.dp_size > 1:
            # Data-parallel ranks hold the same weights, so each writes a part of them.
            strategy = FullyParallelSaveStrategyWrapper(strategy, self._groups.pg.dp_cp)
        return dist_checkpointing.save(tensors, str(directory), strategy, async_sharded_save=True)

    def _record_files(self, temporary: Path) -> dict[str, checkpoints.FileRecord]:
        """Size and hash of the files that this rank wrote; shared files belong to rank 0."""
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
        """Load a checkpoint into model, optimizer and RNG, and log its path.

        Returns:
            The rest of its content.

        Raises:
            CheckpointError: its weights cannot be read.
            ConfigError: the configuration does not fit it.
        """
        directory, manifest = found.directory, found.manifest
        changed = check_resumable(self._config, self._identity.tokenizer, manifest, self._identity.versions)
        for part in self._parts:
            part.load(directory / MODEL)
        exact = {**self._layout, **manifest.layout} == self._layout  # an axis missing in the manifest did not exist yet
        if exact:
            set_rng_state(torch.load(directory / RNG, weights_only=True)["ranks"][self._groups.rank])
        else:
            seed_everything(self._config.run.seed + manifest.step, self._groups)
        for line in [*changed, *consequences(manifest, self._config)]:
            _log.warning("changed since the checkpoint: %s", line)
        _log.info("resuming from %s: %d samples, %d tokens", directory, manifest.samples, manifest.tokens)
        if not exact:
            _log.warning("the layout changed, so the run does not continue bit for bit: same samples, RNG seeded anew")
            _log.warning("  saved under %s, now %s", manifest.layout, self._layout)
        state = TrainState.from_dict(manifest.state)
        state.consecutive_skips = 0  # a new session starts counting again
        return Restored(state, manifest.metrics)


def _bytes_of(tensors: dict[str, Any]) -> int:
    """Size of this rank's main replicas in bytes."""
    own = (part for part in nested_values(tensors) if isinstance(part, ShardedTensor) and part.data is not None)
    return sum(part.data.nbytes for part in own if is_main_replica(part.replica_id))
