"""The proof of a conversion: the converted model gives the logits of the native one."""

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megatron_ko.config import (
    DataConfig,
    ModelConfig,
    OptimConfig,
    PrecisionConfig,
    RunConfig,
    RunSection,
    Source,
    TrainingConfig,
)
from megatron_ko.errors import ConvertError
from megatron_ko.models.build import build_model
from megatron_ko.models.weights import load_weights
from megatron_ko.parallel.platform import get_platform
from megatron_ko.parallel.seed import seed_everything
from megatron_ko.parallel.single import single_world

LENGTHS = (1, 7, 64, 257)
TOLERANCE = 1e-4


@dataclass(frozen=True)
class LogitGate:
    """How far two models are apart, computed in fp32 from the same stored numbers.

    Attributes:
        max_difference: largest absolute difference of logits.
        top1: share of positions whose most probable token is the same.
        positions: how many were compared.
    """

    max_difference: float
    top1: float
    positions: int

    @property
    def passed(self) -> bool:
        """Whether the difference is within rounding."""
        return self.max_difference < TOLERANCE

    def describe(self) -> dict[str, float]:
        """For lineage.json."""
        return {"max_difference": self.max_difference, "top1": self.top1, "positions": self.positions}


def compare_logits(model: ModelConfig, weights: Path, folder: Path) -> LogitGate:
    """Compare a native model with a Hugging Face folder on the same tokens, at several lengths.

    Raises:
        ConvertError: transformers finds other tensors than it needs, or the logits differ.
    """
    peer = _load_peer(folder)
    differences, same, positions = [0.0], 0, 0
    dtype = peer.dtype
    native = _load_native(model, weights, dtype)
    peer = peer.float()
    for tokens in _samples(model):
        ours = native(tokens, torch.arange(tokens.shape[1]).expand_as(tokens), None)[..., : model.vocab_size].float()
        theirs = peer(input_ids=tokens).logits.float()
        differences.append(float((ours - theirs).abs().max()))
        same += int((ours.argmax(-1) == theirs.argmax(-1)).sum())
        positions += tokens.numel()
    return _passed(LogitGate(max(differences), same / positions, positions))


def compare_native(one: tuple[ModelConfig, Path], other: tuple[ModelConfig, Path]) -> LogitGate:
    """Compare two native models (network, weights) with the same vocabulary on the same tokens.

    Raises:
        ConvertError: the logits differ.
    """
    tokens = _samples(one[0])
    expected, found = (_native_logits(model, weights, tokens) for model, weights in (one, other))
    differences = [float((ours - theirs).abs().max()) for ours, theirs in zip(found, expected, strict=True)]
    pairs = zip(found, expected, strict=True)
    same = sum(int((ours.argmax(-1) == theirs.argmax(-1)).sum()) for ours, theirs in pairs)
    positions = sum(part.numel() for part in tokens)
    return _passed(LogitGate(max(differences), same / positions, positions))


@torch.no_grad()
def _native_logits(model: ModelConfig, weights: Path, samples: list[Tensor]) -> list[Tensor]:
    native = _load_native(model, weights, torch.float32)
    return [
        native(tokens, torch.arange(tokens.shape[1]).expand_as(tokens), None)[..., : model.vocab_size]
        for tokens in samples
    ]


def _passed(gate: LogitGate) -> LogitGate:
    if not gate.passed:
        raise ConvertError(
            "the converted model does not give the logits of the native one",
            got=f"largest difference {gate.max_difference:.2e}, {gate.top1:.1%} equal top tokens of {gate.positions}",
            expected=f"below {TOLERANCE:.0e}",
            remedy="nothing was written; the configuration or the weights are not what they say",
        )
    return gate


def _load_peer(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    network, found = AutoModelForCausalLM.from_pretrained(
        folder, dtype="auto", output_loading_info=True, local_files_only=True, attn_implementation="sdpa"
    )
    wrong = {name: sorted(map(str, found[name])) for name in ("missing_keys", "unexpected_keys", "mismatched_keys")}
    if any(wrong.values()):
        raise ConvertError("transformers does not find the tensors that it needs", got=f"{folder}: {wrong}")
    return network.eval()


@torch.no_grad()
def _load_native(model: ModelConfig, weights: Path, dtype: torch.dtype) -> torch.nn.Module:
    """The native model on one rank in fp32, with its weights rounded to the type of the folder."""
    groups = single_world()
    nowhere = Path("nowhere")
    config = RunConfig(
        run=RunSection(dir=nowhere),
        model=model,
        precision=PrecisionConfig(dtype="fp32", backend="portable"),
        data=DataConfig(tokenizer=nowhere, sources=(Source(prefix=nowhere),), sequence_length=max(LENGTHS)),
        optim=OptimConfig(lr=1.0),
        training=TrainingConfig(steps=1, global_batch_size=1),
    )
    seed_everything(0, groups)
    chunks = build_model(config, groups)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        load_weights(chunks, weights)
    for parameter in chunks[0].parameters():
        parameter.copy_(parameter.to(dtype))
    return chunks[0].eval()


def _samples(model: ModelConfig) -> list[Tensor]:
    """Token ids [2, s] of several lengths, the first and the last id among them."""
    draw = torch.Generator().manual_seed(0)
    samples = []
    for length in sorted({min(length, model.max_position_embeddings) for length in LENGTHS}):
        tokens = torch.randint(model.vocab_size, (2, length), generator=draw)
        tokens[0, -1], tokens[1, -1] = 0, model.vocab_size - 1
        samples.append(tokens.to(get_platform().device))
    return samples
