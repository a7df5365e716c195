"""Loads a trained model into one process: a native model, or the newest valid checkpoint of a run, of any layout."""

from dataclasses import dataclass
from pathlib import Path

import torch

from megatron_ko.artifacts.native import MODEL_FILE, find_adapters, find_pretrained
from megatron_ko.artifacts.pins import newest_pinned
from megatron_ko.config import ModelConfig, RunConfig
from megatron_ko.config.load import build
from megatron_ko.data.tokenizer import Tokenizer, load_tokenizer
from megatron_ko.errors import TokenizerError
from megatron_ko.models.blueprint import Blueprint
from megatron_ko.models.inference import TrainedAdapters, blueprint_of, load_for_inference
from megatron_ko.parallel.platform import get_platform


@dataclass(frozen=True)
class Loaded:
    """A model that is ready for inference.

    Attributes:
        model: [b, s] token ids -> logits; in evaluation mode.
        tokenizer: the run's.
        network: configuration of the model.
        step: training step of the weights.
        device: where the model is.
    """

    model: torch.nn.Module
    tokenizer: Tokenizer
    network: ModelConfig
    step: int
    device: torch.device


def load_run(run_dir: Path, step: int | None = None, tokenizer_dir: Path | None = None) -> Loaded:
    """Load a run, or a native model, for inference on this process's device.

    Args:
        run_dir: run directory, or a folder written by a conversion.
        step: which checkpoint; None: the newest valid one.
        tokenizer_dir: current tokenizer folder; None: the one used in training.

    Raises:
        CheckpointError: there is no valid checkpoint.
        TokenizerError: the tokenizer is not the one used in training.
    """
    if (run_dir / MODEL_FILE).is_file():
        return _load_native(run_dir, step, tokenizer_dir)
    pinned = newest_pinned(run_dir / "checkpoints", step)  # until the weights are read, although training goes on
    directory, manifest = pinned.directory, pinned.manifest
    config = build(RunConfig, manifest.config, origin=str(directory))
    if tokenizer_dir is None and not config.data.tokenizer.is_dir():
        raise TokenizerError(
            "the tokenizer of the run is not where it was in training",
            got=f"no folder {config.data.tokenizer}",
            remedy="give its current folder: --tokenizer DIR",
        )
    tokenizer = load_tokenizer(tokenizer_dir or config.data.tokenizer)
    _check_tokenizer(tokenizer, manifest.tokenizer, tokenizer_dir or config.data.tokenizer)
    blueprint, weights = Blueprint.of(config).for_inference, directory / "model"
    found = find_adapters(run_dir, manifest.step) if config.adapter else None
    if found is None:
        return _load(blueprint, weights, tokenizer, manifest.step)
    return _load(blueprint, found.base.weights, tokenizer, manifest.step, TrainedAdapters(found.adapter, weights))


def _load_native(folder: Path, step: int | None, tokenizer_dir: Path | None) -> Loaded:
    found = find_pretrained(folder, step)
    place = tokenizer_dir or found.tokenizer
    if place is None:
        raise TokenizerError(
            "the model has no tokenizer", got=folder, remedy="give the one it was trained with: --tokenizer DIR"
        )
    tokenizer = load_tokenizer(place)
    if found.tokenizer is not None:
        _check_tokenizer(tokenizer, load_tokenizer(found.tokenizer).fingerprint, place)
    return _load(blueprint_of(found.model), found.weights, tokenizer, found.step)


def _load(
    blueprint: Blueprint, weights: Path, tokenizer: Tokenizer, step: int, adapters: TrainedAdapters | None = None
) -> Loaded:
    model = load_for_inference(blueprint, weights, adapters)
    return Loaded(model, tokenizer, blueprint.model, step, get_platform().device)


def _check_tokenizer(tokenizer: Tokenizer, fingerprint: str, folder: Path) -> None:
    if tokenizer.fingerprint != fingerprint:
        raise TokenizerError(
            "the tokenizer is not the one that the model was trained with",
            got=f"{folder}: {tokenizer.fingerprint}",
            expected=fingerprint,
            remedy="give its folder with --tokenizer",
        )
