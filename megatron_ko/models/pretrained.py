"""Native models on disk: a folder that an import wrote, or a checkpoint of a run. Needs no torch."""

from dataclasses import dataclass
from pathlib import Path

import orjson

from megatron_ko.config import ModelConfig, load_model_config
from megatron_ko.config.load import build
from megatron_ko.errors import CheckpointError
from megatron_ko.models import checkpoint_files as files

MODEL_FILE, WEIGHTS, TOKENIZER, LINEAGE = "model.yaml", "weights", "tokenizer", "lineage.json"


@dataclass(frozen=True)
class Pretrained:
    """A native model on disk.

    Attributes:
        model: the network.
        weights: folder of ``dist_checkpointing``.
        tokenizer: its folder, where it is known.
        origin: folder that was named.
        step: training step, 0 for a model that was not trained here.
        tokens: tokens that it was trained on here.
    """

    model: ModelConfig
    weights: Path
    tokenizer: Path | None
    origin: Path
    step: int = 0
    tokens: int = 0


def find_pretrained(folder: Path, step: int | None = None) -> Pretrained:
    """The model in a folder: one that ``convert`` wrote, or a run directory, whose newest valid checkpoint counts.

    Args:
        folder: what the user named.
        step: which checkpoint of a run; None: the newest valid one.

    Raises:
        CheckpointError: there is neither, or it is damaged.
    """
    if (folder / MODEL_FILE).is_file():
        return _native_folder(folder)
    if (folder / "checkpoints").is_dir():
        directory, manifest = files.newest_valid(folder / "checkpoints", step)
        model = build(ModelConfig, manifest.config["model"], origin=str(directory))
        tokenizer = Path(manifest.config["data"]["tokenizer"])
        return Pretrained(
            model,
            directory / "model",
            tokenizer if tokenizer.is_dir() else None,
            folder,
            manifest.step,
            manifest.tokens,
        )
    raise CheckpointError(
        "there is no native model in this folder",
        got=folder,
        expected=f"a run directory, or a folder with {MODEL_FILE} and {WEIGHTS}/",
        remedy="megatron-ko convert hf-import makes one of a Hugging Face folder",
    )


def _native_folder(folder: Path) -> Pretrained:
    manifest = folder / files.MANIFEST
    try:
        records = {name: files.FileRecord(**record) for name, record in orjson.loads(manifest.read_bytes()).items()}
    except (OSError, orjson.JSONDecodeError, TypeError, AttributeError) as error:
        raise CheckpointError("the folder's manifest cannot be read", got=f"{manifest}: {error}") from None
    if problems := files.problems_of(folder, records.items()):
        raise CheckpointError("the folder is damaged", got=f"{folder}: {problems[0]}", remedy="import it again")
    tokenizer = folder / TOKENIZER
    model = load_model_config(folder / MODEL_FILE)
    return Pretrained(model, folder / WEIGHTS, tokenizer if tokenizer.is_dir() else None, folder)
