"""The proof of a conversion: both models hold the same tensors, give the same logits and write the same text."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megatron_ko.config import ModelConfig
from megatron_ko.convert.closeness import Distance, as_logit_gate, closeness_gate, distance, together
from megatron_ko.convert.engines import native_engine, native_logits, peer_engine, peer_greedy, peer_logits
from megatron_ko.convert.families import rules_of
from megatron_ko.convert.gates import Depth, Gate, LogitGate, Proof, require_gates, running
from megatron_ko.convert.mapping import blocks
from megatron_ko.convert.native import NativeReader
from megatron_ko.convert.safetensors_folder import SafetensorsFolder
from megatron_ko.convert.texts import (
    CHATS,
    TokenSamples,
    chat_samples,
    conversation_ids,
    fixed_length,
    in_one_batch,
    random_samples,
    text_samples,
)
from megatron_ko.convert.tokenizer_class import load_oracle, named_class_is_wrong
from megatron_ko.data.tokenizer import load_tokenizer
from megatron_ko.data.tokenizer.check import agreement
from megatron_ko.plan.params import count_parameters

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


def prove(pair: ModelPair, depth: Depth = "full") -> Proof:
    """Compare everything; with "quick", only what costs little, whatever the size.

    Raises:
        ConvertError: with a table, when anything differs or could not be compared.
    """
    gates = [*_tensors(pair), *_vocabulary(pair)]
    require_gates(gates)  # without the right tensors nothing can be computed
    samples: TokenSamples = {}
    if pair.tokenizer is not None:
        with running("the tokenizer in transformers"):
            gates += _tokenizer(pair)
            samples |= text_samples(pair.model, load_tokenizer(pair.tokenizer))
            samples |= chat_samples(pair.model, load_oracle(pair.tokenizer))
        require_gates(gates)
    if depth == "full":
        samples = random_samples(pair.model) | samples
    elif samples:
        samples = in_one_batch(samples)
    else:
        samples = {"random ids": random_samples(pair.model)["random ids"][2:3]}
    logits, computed = _computed(pair, samples, depth)
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
    theirs = load_oracle(pair.folder)
    wrong = None if pair.written_here else named_class_is_wrong(pair.folder)
    if wrong is not None:  # in a folder of others; in one of ours the class that it names has to be right
        yield Gate("class of the tokenizer", 1, True, wrong)
    for result in agreement(load_tokenizer(pair.tokenizer), pair.folder, wrong and theirs):
        yield Gate(f"tokenizer: {result.name}", result.tried, result.ok, result.example)
    if not (pair.folder / "tokenizer.json").is_file():
        return
    yield _definition(pair.tokenizer, pair.folder)
    ours = load_oracle(pair.tokenizer)
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
class _Written:
    """What transformers wrote after a prompt with its cache, in the type of its weights.

    Attributes:
        tokens: prompts and continuations [b, s].
        start: length of the prompts.
        rounding: how far logits of that type are from fp64 on these tokens, at the worst.
        exact: logits in fp64, rounded to fp32.
        own: how far fp32 is from them.
    """

    tokens: Tensor
    start: int
    rounding: float
    exact: Tensor
    own: Distance


@dataclass(frozen=True)
class _PeerResult:
    """What transformers' model of a folder gave.

    Attributes:
        gates: on its keys.
        dtype: of its weights.
        exact: logits of every sample in fp64, rounded to fp32.
        own: how far its fp32 is from them.
        written: with its cache; None: not asked for.
    """

    gates: list[Gate]
    dtype: torch.dtype
    exact: dict[str, list[Tensor]]
    own: dict[str, Distance]
    written: _Written | None = None


def _computed(pair: ModelPair, samples: TokenSamples, depth: Depth) -> tuple[LogitGate, list[Gate]]:
    """Keys, logits and greedy generation. Only one of the two models is in memory at a time."""
    prompts = _prompts(pair.model, samples) if depth == "full" else None
    with running("transformers"):
        theirs = _peer_result(pair, samples, prompts)
    require_gates(theirs.gates)
    with running("the native model"):
        native, _ = native_engine(pair.model, pair.weights, theirs.dtype)
        parts = {
            name: distance([native_logits(native, pair.model, tokens) for tokens in rows], theirs.exact.pop(name))
            for name, rows in samples.items()
        }
        gates = [closeness_gate(f"logits: {name}", part, theirs.own[name]) for name, part in parts.items()]
        if theirs.written is not None:
            gates.append(_greedy_gate(theirs.written, native_logits(native, pair.model, theirs.written.tokens[:, :-1])))
    return as_logit_gate(together([*parts.values()]), together([*theirs.own.values()])), [*theirs.gates, *gates]


def _peer_result(pair: ModelPair, samples: TokenSamples, prompts: Tensor | None) -> _PeerResult:
    peer = peer_engine(pair.folder, pair.written_here)
    network, computing = peer.network, peer.computing
    gates = [
        Gate("keys in transformers", len(list(network.parameters())), not peer.wrong, str(peer.wrong or "")),
        _same_number("parameters in transformers", network.num_parameters(), count_parameters(pair.model).total),
    ]
    if peer.wrong:
        return _PeerResult(gates, network.dtype, {}, {})
    exact, own = {}, {}
    for name, rows in samples.items():
        computing.dtype = torch.float64
        exact[name] = [peer_logits(network, tokens) for tokens in rows]
        computing.dtype = torch.float32
        own[name] = distance([peer_logits(network, tokens) for tokens in rows], exact[name])
    if prompts is None:
        return _PeerResult(gates, network.dtype, exact, own)
    longest = fixed_length(pair.model)  # transformers keeps keys as they were rotated, also when the base has changed
    computing.dtype = network.dtype  # as anybody generates; widened for every token, a large model would take hours
    tokens = peer_greedy(network, prompts, min(GREEDY, longest - prompts.shape[1]))
    seen = []
    for dtype in (torch.float64, torch.float32, network.dtype):
        computing.dtype = dtype
        seen.append(peer_logits(network, tokens[:, :-1]))
    near, rounding = distance([seen[1]], [seen[0]]), distance([seen[2]], [seen[0]]).worst
    written = _Written(tokens, prompts.shape[1], rounding, seen[0], near)
    return _PeerResult(gates, network.dtype, exact, own, written)


def _prompts(model: ModelConfig, samples: TokenSamples) -> Tensor:
    """Beginnings [b, s] of a text and a conversation, or random ids."""
    chosen = [samples[name] for name in ("korean text", "chat template") if name in samples] or [samples["random ids"]]
    rows = [group[-1][:1] for group in chosen]
    length = min(16, max(1, fixed_length(model) // 2), *(row.shape[1] for row in rows))
    return torch.cat([row[:, :length] for row in rows])


def _greedy_gate(written: _Written, logits: Tensor) -> Gate:
    """Each token that transformers chose is the one that the native model finds most probable.

    Two logits can change places when each is as far off as the type that they were computed in rounds them.
    """
    close = closeness_gate("greedy generation", distance([logits], [written.exact]), written.own)
    if not close.ok:
        return close
    expected = logits[:, written.start - 1 :]  # [b, n, v]
    chosen = written.tokens[:, written.start :]
    behind = expected.max(-1).values - expected.gather(-1, chosen[..., None])[..., 0]
    limit = 2 * written.rounding + 1e-6 * float(expected.abs().max())
    if (wrong := (~(behind <= limit)).nonzero()).numel():
        row, at = wrong[0].tolist()
        found = f"new token {at} is {int(chosen[row, at])} there, {int(expected[row, at].argmax())} here"
        return Gate("greedy generation", chosen.numel(), False, found)
    same = float((behind == 0).float().mean())
    return Gate("greedy generation", chosen.numel(), True, f"{same:.1%} the most probable, the others tie in its type")


def compare_native(
    one: tuple[ModelConfig, Path], other: tuple[ModelConfig, Path], depth: Depth
) -> tuple[LogitGate, Gate]:
    """Compare two native models (network, weights) with the same vocabulary on the same tokens.

    Args:
        one: the source, whose own fp64 and fp32 runs say how close the other one has to be.
        other: what was made of it.
        depth: with "quick" only short samples.
    """
    samples = random_samples(one[0])["random ids"][: None if depth == "full" else 3]
    network, computing = native_engine(*one, torch.float32)
    own = [native_logits(network, one[0], tokens) for tokens in samples]
    computing.dtype = torch.float64
    exact = [native_logits(network, one[0], tokens) for tokens in samples]
    del network, computing
    made, _ = native_engine(*other, torch.float32)
    found = distance([native_logits(made, other[0], tokens) for tokens in samples], exact)
    limit = distance(own, exact)
    return as_logit_gate(found, limit), closeness_gate("logits: random ids", found, limit)
