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
from megatron_ko.data.tokenizer.tokenizer import Tokenizer
from megatron_ko.data.tokens.indexed import IndexedReader
from megatron_ko.data.tokens.manifest import IndexManifest, check_shard, read_index_manifest
from megatron_ko.data.tokens.shards import find_shards
from megatron_ko.errors import DataError

SPLITS = ("train", "valid", "test")


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
        samples: whole sequences of (train, valid, test) in one epoch.
    """

    prefix: Path
    manifest: IndexManifest
    weight: float
    samples: tuple[int, ...]

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
        if data.document_mask and manifest.eod is None:
            raise DataError(
                f"documents of {prefix} cannot be kept apart: no token ends them",
                got="data.document_mask=true, shards written with --no-append-eod",
                remedy="preprocess it again with --append-eod, or data.document_mask=false",
            )
        readers.append(check_shard(prefix, manifest))
    _check_same_content(prefixes, manifests)
    weights = _weights([source.weight for source in data.sources], manifests)
    return [
        Shard(prefix, manifest, weight, _samples(reader, data.split, data.sequence_length))
        for prefix, manifest, reader, weight in zip(prefixes, manifests, readers, weights, strict=True)
    ]


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
    raw = explicit or [float(manifest.tokens) for manifest in manifests]
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
