"""A trained model in one process: a native model, or the newest valid checkpoint of a run at whatever layout."""

from dataclasses import dataclass
from pathlib import Path

import torch

from megatron_ko.artifacts.checkpoints import newest_valid
from megatron_ko.artifacts.native import MODEL_FILE, find_pretrained
from megatron_ko.config import ParallelConfig, RunConfig
from megatron_ko.config.load import build
from megatron_ko.data.tokenizer import Tokenizer, load_tokenizer
from megatron_ko.errors import TokenizerError
from megatron_ko.models.build import build_model
from megatron_ko.models.inference import inference_config, load_for_inference
from megatron_ko.models.weights import load_weights
from megatron_ko.parallel.platform import get_platform
from megatron_ko.parallel.seed import seed_everything
from megatron_ko.parallel.single import single_world


@dataclass(frozen=True)
class Loaded:
    """A model that is ready for inference.

    Attributes:
        model: [b, s] token ids -> logits; in evaluation mode.
        tokenizer: the run's.
        config: the run's, with the layout of one rank.
        step: training step of the weights.
        device: where the model is.
    """

    model: torch.nn.Module
    tokenizer: Tokenizer
    config: RunConfig
    step: int
    device: torch.device


def load_run(run_dir: Path, step: int | None = None, tokenizer_dir: Path | None = None) -> Loaded:
    """Load a run, or a native model, for inference on this process's device.

    Args:
        run_dir: run directory, or a folder that a conversion wrote.
        step: which checkpoint; None: the newest valid one.
        tokenizer_dir: where the tokenizer is now; None: where it was in training.

    Raises:
        CheckpointError: there is no valid checkpoint.
        TokenizerError: the tokenizer is not the one of the training.
    """
    if (run_dir / MODEL_FILE).is_file():
        return _load_native(run_dir, step, tokenizer_dir)
    directory, manifest = newest_valid(run_dir / "checkpoints", step)
    config = single_rank(build(RunConfig, manifest.config, origin=str(directory)))
    if tokenizer_dir is None and not config.data.tokenizer.is_dir():
        raise TokenizerError(
            "the tokenizer of the run is not where it was in training",
            got=f"no folder {config.data.tokenizer}",
            remedy="say where it is now: --tokenizer DIR",
        )
    tokenizer = load_tokenizer(tokenizer_dir or config.data.tokenizer)
    _check_tokenizer(tokenizer, manifest.tokenizer, tokenizer_dir or config.data.tokenizer)
    groups = single_world()
    seed_everything(config.run.seed, groups)
    chunks = build_model(config, groups)
    load_weights(chunks, directory / "model")
    return Loaded(chunks[0].eval(), tokenizer, config, manifest.step, get_platform().device)


def _load_native(folder: Path, step: int | None, tokenizer_dir: Path | None) -> Loaded:
    found = find_pretrained(folder, step)
    place = tokenizer_dir or found.tokenizer
    if place is None:
        raise TokenizerError(
            "the model has no tokenizer", got=folder, remedy="say where the one of its training is: --tokenizer DIR"
        )
    tokenizer = load_tokenizer(place)
    if found.tokenizer is not None:
        _check_tokenizer(tokenizer, load_tokenizer(found.tokenizer).fingerprint, place)
    config = inference_config(found.model)
    return Loaded(load_for_inference(config, found.weights), tokenizer, config, found.step, get_platform().device)


def single_rank(config: RunConfig) -> RunConfig:
    """The same model on one rank, without a recipe or a capacity of experts.

    Transformer Engine's layers become portable ones without CUDA.
    """
    backend = "portable" if config.precision.layer_backend == "portable" else "auto"
    precision = config.precision.model_copy(update={"backend": backend, "recipe": "none", "fp8_weights": False})
    return config.model_copy(
        update={"model": config.model.dropless, "parallel": ParallelConfig(), "precision": precision}
    )


def _check_tokenizer(tokenizer: Tokenizer, fingerprint: str, folder: Path) -> None:
    if tokenizer.fingerprint != fingerprint:
        raise TokenizerError(
            "the tokenizer is not the one that the model was trained with",
            got=f"{folder}: {tokenizer.fingerprint}",
            expected=fingerprint,
            remedy="give its folder with --tokenizer",
        )
