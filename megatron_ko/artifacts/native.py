"""Native models on disk: a folder written by an import, or a checkpoint of a run. Needs no torch."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import orjson

from megatron_ko.artifacts import checkpoints, lineage
from megatron_ko.artifacts.pins import Pin, Pinned, newest_pinned
from megatron_ko.config import AdapterConfig, ModelConfig, RunConfig, dump, load_model_config
from megatron_ko.config.load import build
from megatron_ko.errors import CheckpointError

MODEL_FILE, WEIGHTS, TOKENIZER, LINEAGE = "model.yaml", "weights", "tokenizer", lineage.FILE


@dataclass(frozen=True)
class Pretrained:
    """A native model on disk.

    Attributes:
        model: the network.
        weights: folder of ``dist_checkpointing``.
        tokenizer: its folder, if known.
        origin: the folder that the user gave.
        step: training step, 0 for a model that was not trained with this project.
        tokens: tokens that it was trained on with this project.
        weights_hash: hash of the weight files.
        fingerprint: fingerprint of the tokenizer that a run was trained with.
        pin: keeps the checkpoint of a run that goes on training.
    """

    model: ModelConfig
    weights: Path
    tokenizer: Path | None
    origin: Path
    step: int = 0
    tokens: int = 0
    weights_hash: str = ""
    fingerprint: str = ""
    pin: Pin | None = field(default=None, compare=False, repr=False)

    def ancestor(self) -> lineage.Record:
        """The lineage record of this model as a parent."""
        beside = lineage.hash_beside(self.tokenizer, dump(self.model))
        return lineage.ancestor(self.origin, self.weights_hash, self.step, self.tokens, beside)


@dataclass(frozen=True)
class AdapterRun:
    """Adapters on disk, and the model that they belong to.

    Attributes:
        config: of the run.
        adapter: its section about adapters.
        run: the checkpoint; its weights are those of the adapters.
        base: the model that the run started with.
    """

    config: RunConfig
    adapter: AdapterConfig
    run: Pretrained
    base: Pretrained


def find_adapters(folder: Path, step: int | None = None) -> AdapterRun | None:
    """The adapters in the newest valid checkpoint of a run directory; None if it holds a whole model, or is no run.

    Args:
        folder: the folder that the user gave.
        step: which checkpoint; None: the newest valid one.

    Raises:
        CheckpointError: there is no valid checkpoint, or the model that the run started with is gone or has changed.
    """
    if (folder / MODEL_FILE).is_file() or not (folder / "checkpoints").is_dir():
        return None
    pinned = newest_pinned(folder / "checkpoints", step)
    if pinned.manifest.config.get("adapter") is None:
        return None
    config = build(RunConfig, pinned.manifest.config, origin=str(pinned.directory))
    start = config.checkpoint.start_from
    assert config.adapter is not None and start is not None
    base = find_pretrained(start, best_step(start) if config.checkpoint.start_best else None)
    expect_same_start(folder, base)
    return AdapterRun(config, config.adapter, _checkpoint(folder, pinned), base)


def expect_same_start(run_dir: Path, base: Pretrained) -> None:
    """Refuse weights other than those that a run started with: its adapters, or its reference, mean nothing with them.

    Raises:
        CheckpointError: with both hashes.
    """
    for started in (lineage.read(run_dir) or {}).get("parents", []):
        if started["weights"] != base.weights_hash:
            raise CheckpointError(
                "the weights that this run started with have changed",
                got=f"{base.origin}: weights {base.weights_hash}",
                expected=f"weights {started['weights']}",
                remedy="put back what checkpoint.start_from was at the start, or choose another run.dir",
            )


def find_pretrained(folder: Path, step: int | None = None) -> Pretrained:
    """The model in a folder: one written by ``convert``, or the newest valid checkpoint of a run directory.

    Args:
        folder: the folder that the user gave.
        step: which checkpoint of a run; None: the newest valid one.

    Raises:
        CheckpointError: there is neither, or it is damaged, or the run has trained adapters.
    """
    return _find(folder, step, whole=True)


def _find(folder: Path, step: int | None, whole: bool) -> Pretrained:
    """A model, or, unless ``whole``, adapters."""
    if (folder / MODEL_FILE).is_file():
        if step is not None:
            raise CheckpointError(f"there is no checkpoint of step {step}", got=f"{folder}, which is not a run")
        return _native_folder(folder)
    if (folder / "checkpoints").is_dir():
        pinned = newest_pinned(folder / "checkpoints", step)
        if whole and pinned.manifest.config.get("adapter") is not None:
            raise CheckpointError(
                "the run has trained adapters: by themselves they are no model",
                got=folder,
                expected="a whole model",
                remedy=f"megatron-ko convert merge-adapter {folder} OUTPUT, and give OUTPUT",
            )
        return _checkpoint(folder, pinned)
    raise _no_model(folder)


def _checkpoint(folder: Path, pinned: Pinned) -> Pretrained:
    directory, manifest = pinned.directory, pinned.manifest
    tokenizer = Path(manifest.config["data"]["tokenizer"])
    return Pretrained(
        build(ModelConfig, manifest.config["model"], origin=str(directory)),
        directory / "model",
        tokenizer if tokenizer.is_dir() else None,
        folder,
        manifest.step,
        manifest.tokens,
        weights_of(manifest),
        manifest.tokenizer,
        pinned.pin,
    )


def best_step(folder: Path) -> int:
    """The step of a run's best validation, as its newest checkpoint knows it.

    Raises:
        CheckpointError: no checkpoint, no validation, or that checkpoint was not kept.
    """
    checkpoint_folder = folder / "checkpoints"
    step = int(newest_pinned(checkpoint_folder).manifest.state.get("best_step", 0))
    if step not in (present := checkpoints.steps_in(checkpoint_folder)):
        raise CheckpointError(
            f"{folder} has no checkpoint of its best validation",
            got=f"best at step {step}, checkpoints of {', '.join(map(str, present))}" if step else "no validation",
            remedy="train with checkpoint.keep_best=true",
        )
    return step


def expect_model(folder: Path) -> None:
    """Quickly refuse a folder without a model or a checkpoint; nothing is opened or verified.

    Raises:
        CheckpointError: there is neither.
    """
    if (folder / MODEL_FILE).is_file():
        return
    if not (folder / "checkpoints").is_dir():
        raise _no_model(folder)
    if not checkpoints.steps_in(folder / "checkpoints"):
        checkpoints.newest_valid(folder / "checkpoints")  # raises: there is none


def _no_model(folder: Path) -> CheckpointError:
    return CheckpointError(
        "there is no native model in this folder",
        got=folder,
        expected=f"a run directory, or a folder with {MODEL_FILE} and {WEIGHTS}/",
        remedy="megatron-ko convert hf-import makes one from a Hugging Face folder",
    )


def _native_folder(folder: Path) -> Pretrained:
    manifest = folder / checkpoints.MANIFEST
    try:
        records = {
            name: checkpoints.FileRecord(**record) for name, record in orjson.loads(manifest.read_bytes()).items()
        }
    except (OSError, orjson.JSONDecodeError, TypeError, AttributeError) as error:
        raise CheckpointError("the folder's manifest cannot be read", got=f"{manifest}: {error}") from None
    if problems := checkpoints.problems_of(folder, records.items()):
        raise CheckpointError("the folder is damaged", got=f"{folder}: {problems[0]}", remedy="import it again")
    tokenizer = folder / TOKENIZER
    model = load_model_config(folder / MODEL_FILE)
    return Pretrained(
        model,
        folder / WEIGHTS,
        tokenizer if tokenizer.is_dir() else None,
        folder,
        weights_hash=_hash(records, WEIGHTS),
    )


def weights_of(manifest: checkpoints.Manifest) -> str:
    """Hash of the weights in a checkpoint."""
    return _hash(manifest.files, "model")


def _hash(records: Mapping[str, checkpoints.FileRecord], folder: str) -> str:
    """Hash of the files of one folder, under the names that they have in a native model."""
    return lineage.hash_of_hashes(
        {
            WEIGHTS + name.removeprefix(folder): record.xxh3_128
            for name, record in records.items()
            if name.startswith(folder + "/")
        }
    )


def describe(path: Path) -> lineage.Record:
    """A run, a native model or another artefact in the form of ``lineage.ancestor``, with its current weights.

    Raises:
        CheckpointError: its weights do not match its lineage, or there is neither a model nor a lineage.
    """
    folder = path.parent if path.name == LINEAGE else path
    if (folder / MODEL_FILE).is_file() or checkpoints.steps_in(folder / "checkpoints"):
        node = _find(folder, None, whole=False).ancestor()
    else:
        node = lineage.ancestor(folder, lineage.hash_of_folder(folder) or "")
    record = lineage.read(folder) or {}
    if not node["weights"] and not record:
        raise CheckpointError("there is neither a model nor a lineage in this folder", got=folder)
    recorded = record.get("weights")
    if recorded and recorded != node["weights"]:
        raise CheckpointError(
            "the weights are not those of the lineage",
            got=f"{folder}: weights {node['weights'] or 'missing'}",
            expected=recorded,
            remedy="convert again: these weights come from elsewhere",
        )
    if changed := lineage.changed_beside(folder, record):
        raise CheckpointError(
            "files beside the weights are not those of the lineage",
            got=f"{folder}: {', '.join(changed)} changed or missing",
            expected="the files that were there when the weights were checked",
            remedy="convert again, or restore them",
        )
    return node
