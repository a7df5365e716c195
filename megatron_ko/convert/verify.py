"""The proof of a conversion: both models hold the same tensors, give the same logits and write the same text."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megatron_ko.config import ModelConfig
from megatron_ko.convert.engines import native_engine, native_logits, peer_engine, peer_greedy, peer_logits
from megatron_ko.convert.families import rules_of
from megatron_ko.convert.gates import Gate, LogitGate, Proof, require_gates, running
from megatron_ko.convert.mapping import blocks
from megatron_ko.convert.native import NativeReader
from megatron_ko.convert.safetensors_folder import SafetensorsFolder
from megatron_ko.convert.texts import (
    CHATS,
    TokenSamples,
    chat_samples,
    conversation_ids,
    fixed_length,
    load_oracle,
    random_samples,
    text_samples,
)
from megatron_ko.data.tokenizer import load_tokenizer
from megatron_ko.data.tokenizer.check import agreement
from megatron_ko.plan.params import count_parameters

TOLERANCE = 1e-4
GREEDY = 64


@dataclass(frozen=True)
class ModelPair:
    """A native model and a Hugging Face folder that are to be the same.

    Attributes:
        model, weights: the native one.
        tokenizer: folder of its tokenizer, where it has one.
        folder: the Hugging Face folder.
        written_here: whether this program wrote the folder, so that code in it may run.
    """

    model: ModelConfig
    weights: Path
    tokenizer: Path | None
    folder: Path
    written_here: bool


def prove(pair: ModelPair) -> Proof:
    """Compare everything.

    Raises:
        ConvertError: with a table, when anything differs or could not be compared.
    """
    gates = [*_tensors(pair), *_vocabulary(pair)]
    require_gates(gates)  # without the right tensors nothing can be computed
    samples = random_samples(pair.model)
    if pair.tokenizer is not None:
        with running("the tokenizer in transformers"):
            gates += _tokenizer(pair)
            samples |= text_samples(pair.model, load_tokenizer(pair.tokenizer))
            samples |= chat_samples(pair.model, load_oracle(pair.tokenizer))
        require_gates(gates)
    logits, computed = _computed(pair, samples)
    require_gates([*gates, *computed])
    return Proof(logits, (*gates, *computed))


def _tensors(pair: ModelPair) -> Iterator[Gate]:
    """Every tensor of the folder is the one that the table makes of ours, bit for bit, and all have their shapes."""
    rules = rules_of(pair.model)
    native = NativeReader(pair.weights)
    tried, numbers, differing, damaged = 0, 0, [], []
    with SafetensorsFolder(pair.folder) as tensors:
        present = tensors.shapes
        if pair.model.tie_embeddings:  # some folders keep the shared output layer a second time
            present.pop("lm_head.weight", None)
        for block in blocks(rules, pair.model):
            for name, part in zip(
                block.others, block.mapping.split(native.read(block.native, block.index)), strict=True
            ):
                tried += 1
                if present.pop(name, None) is None:
                    differing.append(f"{name} is missing")
                    continue
                stored = tensors.read(name)
                numbers += stored.numel()
                if stored.shape != part.shape or not torch.equal(stored, part.to(stored.dtype)):
                    differing.append(name)
                if not stored.isfinite().all():
                    damaged.append(name)
    differing += [f"{name} is not expected" for name in present]
    yield Gate(
        "tensors", tried, not differing, f"{len(differing)} differ: {_few(differing)}" if differing else "bit for bit"
    )
    yield Gate("finite numbers", numbers, not damaged, _few(damaged))
    yield _same_number("parameters", numbers, count_parameters(pair.model).total)


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")


def _same_number(name: str, found: int, expected: int) -> Gate:
    return Gate(name, found, found == expected, "" if found == expected else f"expected {expected:,}")


def _vocabulary(pair: ModelPair) -> Iterator[Gate]:
    """The configuration of the folder has a row for every id, and the tokenizer no id without a trained row."""
    rows = json.loads((pair.folder / "config.json").read_text(encoding="utf-8"))["vocab_size"]
    found = "" if rows == pair.model.vocab_size else f"{rows:,} in config.json, {pair.model.vocab_size:,} trained"
    if pair.tokenizer is not None:
        ids = load_tokenizer(pair.tokenizer).vocab_size
        found = found or ("" if ids <= rows else f"the tokenizer has {ids:,} ids, the vocabulary {rows:,} trained rows")
    yield Gate("vocabulary rows", rows, not found, found)


def _tokenizer(pair: ModelPair) -> Iterator[Gate]:
    """Token by token over the nasty suite, and the conversations as the template renders them."""
    assert pair.tokenizer is not None
    for result in agreement(load_tokenizer(pair.tokenizer), pair.folder):
        yield Gate(f"tokenizer: {result.name}", result.tried, result.ok, result.example)
    if not (pair.folder / "tokenizer.json").is_file():
        return
    yield _definition(pair.tokenizer, pair.folder)
    ours, theirs = load_oracle(pair.tokenizer), load_oracle(pair.folder)
    if ours.chat_template or theirs.chat_template:
        yield _template(ours, theirs)


def _definition(one: Path, other: Path) -> Gate:
    """Compare tokenizer.json itself: no text of the suite uses all of it, such as a rare merge."""
    ours, theirs = (json.loads((folder / "tokenizer.json").read_text(encoding="utf-8")) for folder in (one, other))
    differing = sorted(part for part in {*ours, *theirs} if ours.get(part) != theirs.get(part))
    return Gate("tokenizer.json", len(ours), not differing, f"differs in {', '.join(differing)}" if differing else "")


def _template(ours: Any, theirs: Any) -> Gate:
    name, tried = "chat template", len(CHATS)
    if not (ours.chat_template and theirs.chat_template):
        return Gate(name, tried, False, f"only {'the native model' if ours.chat_template else 'the folder'} has one")
    for chat in CHATS:
        if (one := conversation_ids(ours, chat)) != (other := conversation_ids(theirs, chat)):
            pairs = enumerate(zip(one, other, strict=False))
            at = next((place for place, (a, b) in pairs if a != b), min(len(one), len(other)))
            return Gate(name, tried, False, f"token {at} of {chat[0]['content']!r} differs")
    same = ours.chat_template == theirs.chat_template
    return Gate(name, tried, same, "" if same else "the templates differ, though not on these conversations")


@dataclass(frozen=True)
class _PeerResult:
    """What transformers' model of a folder gave: logits of every sample, and what it wrote after the prompts."""

    gates: list[Gate]
    dtype: torch.dtype
    logits: dict[str, list[Tensor]]
    written: list[Tensor]


def _computed(pair: ModelPair, samples: TokenSamples) -> tuple[LogitGate, list[Gate]]:
    """Keys, logits and greedy generation. Only one of the two models is in memory at a time."""
    chosen = [samples[name] for name in ("korean text", "chat template") if name in samples] or [samples["random ids"]]
    prompts = [rows[-1][:1, : _prompt_length(pair.model)] for rows in chosen]
    with running("transformers"):
        theirs = _peer_result(pair, samples, prompts)
    require_gates(theirs.gates)
    with running("the native model"):
        native = native_engine(pair.model, pair.weights, theirs.dtype)
        parts = {
            name: _distance([native_logits(native, pair.model, tokens) for tokens in rows], theirs.logits.pop(name))
            for name, rows in samples.items()
        }
        greedy = _greedy_gate(prompts, theirs.written, lambda tokens: native_logits(native, pair.model, tokens))
    gates = [_logit_gate(f"logits: {name}", part) for name, part in parts.items()]
    return _together(list(parts.values())), [*theirs.gates, *gates, greedy]


def _peer_result(pair: ModelPair, samples: TokenSamples, prompts: list[Tensor]) -> _PeerResult:
    peer, wrong = peer_engine(pair.folder, pair.written_here)
    gates = [
        Gate("keys in transformers", len(list(peer.parameters())), not wrong, str(wrong or "")),
        _same_number("parameters in transformers", peer.num_parameters(), count_parameters(pair.model).total),
    ]
    if wrong:
        return _PeerResult(gates, peer.dtype, {}, [])
    logits = {name: [peer_logits(peer, tokens) for tokens in rows] for name, rows in samples.items()}
    longest = fixed_length(pair.model)  # transformers keeps keys as they were rotated, also when the base has changed
    written = [peer_greedy(peer, prompt, min(GREEDY, longest - prompt.shape[1])) for prompt in prompts]
    return _PeerResult(gates, peer.dtype, logits, written)


def _prompt_length(model: ModelConfig) -> int:
    return max(1, min(16, fixed_length(model) // 2))


def _greedy_gate(prompts: Sequence[Tensor], written: Sequence[Tensor], logits: Callable[[Tensor], Tensor]) -> Gate:
    """Each token that transformers chose, with its cache, is the one that the native model finds most probable."""
    tried, found = 0, ""
    for prompt, tokens in zip(prompts, written, strict=True):
        start = prompt.shape[1]
        expected = logits(tokens[:, :-1])[0, start - 1 :]  # [n, v]
        chosen = tokens[0, start:]
        behind = expected.max(-1).values - expected.gather(-1, chosen[:, None])[:, 0]
        tried += len(chosen)
        if (wrong := (behind > TOLERANCE).nonzero()).numel() and not found:
            at = int(wrong[0])
            found = f"new token {at} is {int(chosen[at])} there, {int(expected[at].argmax())} here"
    return Gate("greedy generation", tried, not found, found)


def compare_native(one: tuple[ModelConfig, Path], other: tuple[ModelConfig, Path]) -> Proof:
    """Compare two native models (network, weights) with the same vocabulary on the same tokens.

    Raises:
        ConvertError: the logits differ.
    """
    samples = random_samples(one[0])["random ids"]
    expected, found = (_native(model, weights, samples) for model, weights in (one, other))
    part = _distance(found, expected)
    gate = _logit_gate("logits: random ids", part)
    require_gates([gate])
    return Proof(part, (gate,))


def _native(model: ModelConfig, weights: Path, samples: list[Tensor]) -> list[Tensor]:
    native = native_engine(model, weights, torch.float32)
    return [native_logits(native, model, tokens) for tokens in samples]


def _distance(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> LogitGate:
    pairs = list(zip(ours, theirs, strict=True))
    differences = [float((one - other).abs().max().nan_to_num(torch.inf)) for one, other in pairs]
    same = sum(int((one.argmax(-1) == other.argmax(-1)).sum()) for one, other in pairs)
    positions = sum(one.shape[0] * one.shape[1] for one in ours)
    return LogitGate(max(differences), same / positions, positions)


def _together(parts: Sequence[LogitGate]) -> LogitGate:
    positions = sum(part.positions for part in parts)
    same = sum(part.top1 * part.positions for part in parts) / positions
    return LogitGate(max(part.max_difference for part in parts), same, positions)


def _logit_gate(name: str, part: LogitGate) -> Gate:
    found = f"largest difference {part.max_difference:.1e}, {part.top1:.1%} equal top tokens"
    return Gate(name, part.positions, part.max_difference < TOLERANCE, found)
