"""Loads the weights that a new run starts with, if they are not random: from a native model or another run."""

import json
from pathlib import Path

import torch

from megatron_ko.artifacts.native import Pretrained, best_step, expect_same_start, find_pretrained
from megatron_ko.config import RunConfig
from megatron_ko.data.tokenizer.tokenizer import Tokenizer, load_tokenizer
from megatron_ko.errors import ConfigError
from megatron_ko.log import get_logger
from megatron_ko.models.weights import load_weights
from megatron_ko.train.resume import differences, is_bound

_log = get_logger(__name__)


def load_start(config: RunConfig, chunks: list[torch.nn.Module], tokenizer: Tokenizer, again: bool = False) -> None:
    """Load the weights of ``checkpoint.start_from`` into model chunks before the optimizer is built. A collective.

    Args:
        config: of the run.
        chunks: model chunks.
        tokenizer: of the run.
        again: whether the run has started before, and needs the weights that it started with.

    Raises:
        CheckpointError: there is no native model, or it is damaged; adapters were trained with other weights.
        ConfigError: its network or its tokenizer is a different one.
    """
    folder = config.checkpoint.start_from
    assert folder is not None
    found = find_pretrained(folder, start_step(config))
    _check_network(config, found, folder)
    _check_tokenizer(found, tokenizer, folder)
    if again or config.adapter is not None:
        expect_same_start(config.run.dir, found)
    load_weights(chunks, found.weights)
    _log.info("starting with the weights of %s", found.weights)


def start_step(config: RunConfig) -> int | None:
    """Which checkpoint of ``checkpoint.start_from`` the run starts with; None: the newest one.

    Raises:
        CheckpointError: the best one is asked for, and was not kept.
    """
    folder = config.checkpoint.start_from
    return best_step(folder) if folder is not None and config.checkpoint.start_best else None


def _check_network(config: RunConfig, found: Pretrained, folder: Path) -> None:
    theirs, ours = ({"model": model.explicit()} for model in (found.model, config.model))
    changed = {path: values for path, values in differences(theirs, ours).items() if is_bound(path)}
    if found.model.rope.scaling is None and config.model.rope.scaling is not None:
        # Training with a longer context starts with the weights for the shorter one.
        changed = {path: values for path, values in changed.items() if not path.startswith("model.rope.scaling")}
        _log.info("rotary positions are stretched from here on: %s", config.model.rope.scaling.type)
    refused = [f"{path}: {old} -> {new}" for path, (old, new) in changed.items()]
    if refused:
        raise ConfigError(
            "checkpoint.start_from holds the weights of another network",
            got=f"{folder}: {'; '.join(refused)}",
            expected="the model section that it was made with",
            remedy=" ".join(f"{path}={json.dumps(old)}" for path, (old, _) in changed.items()),
        )


def _check_tokenizer(found: Pretrained, tokenizer: Tokenizer, folder: Path) -> None:
    if found.tokenizer is None:
        _log.warning("%s does not say which tokenizer its ids come from: make sure that it is this one", folder)
        return
    theirs = load_tokenizer(found.tokenizer).fingerprint
    if theirs != tokenizer.fingerprint:
        raise ConfigError(
            "the corpus was encoded with another tokenizer than the weights were trained with",
            got=f"data.tokenizer {tokenizer.fingerprint[:16]}",
            expected=f"{theirs[:16]}, the one in {found.tokenizer}",
            remedy=f"preprocess the text with {found.tokenizer}",
        )
