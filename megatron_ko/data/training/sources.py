"""The indexed files of a run, checked before anything is built: the cheap checks, weights, and sizes of the splits."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TypedDict

import numpy as np

from megatron_ko.config import DataConfig
from megatron_ko.config.data import Source
from megatron_ko.config.objective import Kind
from megatron_ko.data.tokenizer.chat_template import read_template
from megatron_ko.data.tokenizer.tokenizer import Tokenizer
from megatron_ko.data.tokens.indexed import IndexedReader
from megatron_ko.data.tokens.manifest import IndexManifest, check_shard, read_index_manifest
from megatron_ko.data.tokens.marked import MarkedReader
from megatron_ko.data.tokens.shards import find_shards
from megatron_ko.data.training.packing import plan_packs
from megatron_ko.errors import DataError

SPLITS = ("train", "valid", "test")
_OBJECTIVES = {"text": "lm", "chat": "sft", "pairs": "dpo", "verdicts": "kto"}


class CorpusEntry(TypedDict):
    """One source in lineage.json: its prefix, the sha256 of its tokens, their number, and its share in the mixture."""

    prefix: str
    sha256: str
    tokens: int
    weight: float


@dataclass(frozen=True)
class Shard:
    """One checked source.

    Attributes:
        prefix: of its files.
        manifest: what it holds.
        weight: its share in the mixture; all shares sum to 1.
        samples: sequences, or packs of rows, of (train, valid, test) in one epoch.
    """

    prefix: Path
    manifest: IndexManifest
    weight: float
    samples: tuple[int, ...]

    @property
    def kind(self) -> str:
        """What it holds: text, chat, pairs or verdicts."""
        return self.manifest.chat.kind if self.manifest.chat else "text"

    @property
    def key(self) -> str:
        """Names its content, wherever it lies."""
        return self.manifest.sha256["bin"][:16]

    def describe(self) -> CorpusEntry:
        """For lineage.json."""
        tokens, sha256 = self.manifest.tokens, self.manifest.sha256["bin"]
        return {"prefix": str(self.prefix), "sha256": sha256, "tokens": tokens, "weight": self.weight}


def expand_sources(sources: Sequence[Source]) -> tuple[Source, ...]:
    """The indexed files that sources mean: a prefix of several shards, or a folder, stands for all of them, in order.

    Its weight is divided among them in proportion to their tokens.

    Raises:
        DataError: a shard is missing.
    """
    return tuple(shard for source in sources for shard in _expand(source))


def _expand(source: Source) -> list[Source]:
    prefixes = find_shards(source.prefix)
    if prefixes == [source.prefix]:
        return [source]
    tokens = [read_index_manifest(prefix).tokens for prefix in prefixes]
    name = source.name or source.prefix.name
    return [
        source.model_copy(
            update={
                "prefix": prefix,
                "name": name,
                "weight": None if source.weight is None else source.weight * count / sum(tokens),
            }
        )
        for prefix, count in zip(prefixes, tokens, strict=True)
    ]


def check_sources(data: DataConfig, tokenizer: Tokenizer) -> list[Shard]:
    """Check every source and resolve its weight.

    Raises:
        DataError: files missing, truncated or changed; another tokenizer; ids outside the vocabulary; a source twice;
            weights on some sources only; documents to be kept apart that no token ends.
    """
    prefixes = [source.prefix for source in data.sources]
    for index, prefix in enumerate(prefixes):
        if prefix.resolve() in {earlier.resolve() for earlier in prefixes[:index]}:
            raise DataError("a source is given twice", got=str(prefix), remedy="raise its weight in data.sources")
    manifests = [read_index_manifest(prefix) for prefix in prefixes]
    readers = []
    for prefix, manifest in zip(prefixes, manifests, strict=True):
        _check_tokenizer(prefix, manifest, tokenizer)
        if data.document_mask and manifest.chat is None and manifest.eod is None:
            raise DataError(
                f"documents of {prefix} cannot be kept apart: no token ends them",
                got="data.document_mask=true, shards written with --no-append-eod",
                remedy="preprocess it again with --append-eod, or data.document_mask=false",
            )
        readers.append(check_shard(prefix, manifest))
    _check_same_content(prefixes, manifests)
    weights = _weights([source.weight for source in data.sources], manifests)
    samples = [
        _samples(reader, data.split, data.sequence_length)
        if manifest.chat is None
        else check_rows(prefix, tokenizer, data)
        for prefix, manifest, reader in zip(prefixes, manifests, readers, strict=True)
    ]
    if any(manifest.chat for manifest in manifests):
        weights = _shares_of_samples(weights, manifests, samples, data.sequence_length)
    return [Shard(*parts) for parts in zip(prefixes, manifests, weights, samples, strict=True)]


def check_kinds(kind: Kind, shards: Sequence[Shard]) -> None:
    """Refuse sources that an objective cannot train on.

    Raises:
        DataError: which source.
    """
    wanted = {"lm": {"text"}, "sft": {"chat", "text"}, "kto": {"verdicts"}}.get(kind, {"pairs"})
    for shard in shards:
        if shard.kind not in wanted:
            makers = {
                "text": "data preprocess",
                "chat": "data chat",
                "pairs": "data preference",
                "verdicts": "data preference",
            }
            maker = makers[min(wanted)]
            raise DataError(
                f"objective.kind={kind} cannot train on {shard.prefix}",
                got=shard.kind,
                expected=" or ".join(sorted(wanted)),
                remedy=f"objective.kind={_OBJECTIVES[shard.kind]}, or make it with {maker}",
            )
    if kind == "sft" and all(shard.kind == "text" for shard in shards):
        raise DataError(
            "objective.kind=sft needs a source of conversations",
            got=", ".join(str(shard.prefix) for shard in shards),
            remedy="megatron-ko data chat makes one; for texts alone objective.kind=lm",
        )


def check_filler(data: DataConfig, tokenizer: Tokenizer) -> IndexedReader:
    """The text that fills what rows leave empty.

    Raises:
        DataError: it is damaged, or was encoded with another tokenizer.
    """
    assert data.filler is not None
    manifest = read_index_manifest(data.filler)
    if manifest.chat is not None:
        raise DataError(
            f"data.filler is no text: {data.filler}",
            got=manifest.chat.kind,
            expected="what data preprocess wrote: every token of it is trained",
            remedy="give it to data.sources, or another data.filler",
        )
    _check_tokenizer(data.filler, manifest, tokenizer)
    return check_shard(data.filler, manifest)


def check_rows(prefix: Path, tokenizer: Tokenizer, data: DataConfig) -> tuple[int, ...]:
    """Check rows against the sequence length and the chat template of a run.

    Returns:
        Packs of (train, valid, test) in an epoch.

    Raises:
        DataError: rows that are too long, or were spelt with another template.
    """
    marked = MarkedReader(prefix)
    source = read_template(tokenizer.folder)
    template = hashlib.sha256((source or "").encode("utf-8")).hexdigest()
    if template != marked.chat.template:
        raise DataError(
            f"{prefix} was spelt with another chat template",
            got=marked.chat.template[:16],
            expected=f"{template[:16]}, in {tokenizer.folder}" if source else f"none in {tokenizer.folder}",
            remedy="make it again, or restore the template: megatron-ko tokenizer chat DIR --set FILE",
        )
    positions, length = marked.positions(), data.sequence_length
    if len(positions) and int(positions.max()) > length:
        raise DataError(
            f"{prefix} has rows that do not fit into a sample",
            got=f"{int((positions > length).sum()):,} of {len(positions):,}; the longest has {int(positions.max()):,}",
            expected=f"at most data.sequence_length {length:,} positions",
            remedy=f"make it again with --sequence-length {length} and --too-long, or a longer data.sequence_length",
        )
    parts = split_rows(len(marked), data.split)
    return tuple(len(plan_packs(positions[part.start : part.stop], length, 0, 0)) for part in parts)


def split_rows(rows: int, split: Sequence[float]) -> list[range]:
    """The rows of (train, valid, test), divided in order."""
    borders = [0, *(round(float(end) * rows) for end in np.cumsum(split) / sum(split))]
    return [range(first, last) for first, last in pairwise(borders)]


def _shares_of_samples(
    weights: Sequence[float], manifests: Sequence[IndexManifest], samples: Sequence[Sequence[int]], length: int
) -> list[float]:
    """Shares of trained tokens as shares of samples: of conversations a sample trains only the answers."""
    trained = [
        manifest.trained_tokens / max(1, sum(parts)) if manifest.chat else float(length)
        for manifest, parts in zip(manifests, samples, strict=True)
    ]
    raw = [weight / each for weight, each in zip(weights, trained, strict=True)]
    return [share / sum(raw) for share in raw]


def check_split(data: DataConfig, shards: Sequence[Shard], split: int) -> int:
    """How many samples one pass over ``split`` gives in the mixture, no source being read twice.

    Raises:
        DataError: a source gives none.
    """
    name = SPLITS[split]
    if data.split[split] == 0:
        raise DataError(
            f"{name} samples are asked for, but data.split gives that part nothing",
            got=f"data.split = {data.split}",
            expected=f"a share for {name}",
            remedy="for example data.split=[98,2,0]" if name == "valid" else "change data.split",
        )
    for shard in shards:
        if shard.samples[split] == 0:
            raise DataError(
                f"the {name} part of {shard.prefix} has not a single sequence",
                got=f"{shard.manifest.documents} documents, {shard.manifest.tokens} tokens, split {data.split}",
                expected=f"more than {data.sequence_length} tokens in whole documents of that part",
                remedy="more text, a larger share in data.split, or a shorter data.sequence_length",
            )
    return min(int(shard.samples[split] / shard.weight) for shard in shards)


def cache_key(data: DataConfig, shards: Sequence[Shard], sizes: Sequence[int | None], seed: int) -> str:
    """Names sample indices by everything that decides them, the content of the data included."""
    described = {
        "content": [shard.manifest.sha256 for shard in shards],
        "prefixes": [str(shard.prefix) for shard in shards],
        "weights": [shard.weight for shard in shards],
        "split": data.split,
        "sequence_length": data.sequence_length,
        "seed": seed,
        # One source: indices cover an epoch, whatever is asked for. A mixture is laid out for its size.
        "sizes": list(sizes) if len(shards) > 1 else [size is not None for size in sizes],
    }
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()[:24]


def _check_tokenizer(prefix: Path, manifest: IndexManifest, tokenizer: Tokenizer) -> None:
    if manifest.tokenizer_fingerprint != tokenizer.fingerprint:
        raise DataError(
            f"{prefix} was encoded with another tokenizer",
            got=f"fingerprint {manifest.tokenizer_fingerprint[:16]} ({manifest.vocab_size} ids)",
            expected=f"{tokenizer.fingerprint[:16]} ({tokenizer.vocab_size} ids, {tokenizer.folder})",
            remedy="set data.tokenizer to the right folder, or preprocess the text again",
        )
    if manifest.max_token_id >= tokenizer.vocab_size:
        raise DataError(
            f"{prefix} holds token ids outside the vocabulary",
            got=f"id {manifest.max_token_id}",
            expected=f"below {tokenizer.vocab_size}",
            remedy="preprocess the text again",
        )


def _check_same_content(prefixes: Sequence[Path], manifests: Sequence[IndexManifest]) -> None:
    seen: dict[str, Path] = {}
    for prefix, manifest in zip(prefixes, manifests, strict=True):
        digest = manifest.sha256["bin"]
        if digest in seen:
            raise DataError(
                "two sources hold the same tokens",
                got=f"{seen[digest]} and {prefix}",
                remedy="remove one from data.sources, or raise the weight of the other",
            )
        seen[digest] = prefix


def _weights(given: Sequence[float | None], manifests: Sequence[IndexManifest]) -> list[float]:
    explicit = [weight for weight in given if weight is not None]
    if explicit and len(explicit) < len(given):
        raise DataError(
            "some sources have a weight and some have none",
            got=list(given),
            expected="a weight for every source, or for none (in proportion to tokens)",
            remedy="complete data.sources",
        )
    raw = explicit or [float(manifest.trained_tokens or manifest.tokens) for manifest in manifests]
    return [weight / sum(raw) for weight in raw]


def _samples(reader: IndexedReader, split: Sequence[float], sequence_length: int) -> tuple[int, ...]:
    """Whole sequences of every part, documents divided by megatron-core's rounding."""
    total, ends = sum(split), np.cumsum(split) / sum(split)
    assert total > 0
    borders = [0, *(round(float(end) * len(reader)) for end in ends)]
    counts = []
    for first, last in pairwise(borders):
        tokens = int(reader.lengths[first:last].sum(dtype=np.int64))
        counts.append(max(0, (tokens - 1) // sequence_length))
    return tuple(counts)
