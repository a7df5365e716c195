"""How much of every source a run reads: weights for a budget of tokens, and how often each source is then repeated."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from megatron_ko.data.tokens.manifest import IndexManifest, check_shard, read_index_manifest
from megatron_ko.data.tokens.shards import find_shards
from megatron_ko.errors import DataError
from megatron_ko.storage.files import StagedFiles, explain_disk_errors

Method = Literal["proportional", "temperature", "explicit", "unimax"]
# Epochs up to which repeated text teaches almost as much as new text (Muennighoff et al. 2023, arXiv:2305.16264).
MAX_EPOCHS = 4.0
_ROUNDING = 1e-9


@dataclass(frozen=True)
class SourceData:
    """One source of a blend: an indexed file, or all shards of one.

    Attributes:
        name: last part of its path, or the whole path if two sources have the same last part.
        shards, manifests: what it consists of.
    """

    name: str
    shards: tuple[Path, ...]
    manifests: tuple[IndexManifest, ...]

    @property
    def tokens(self) -> int:
        """In all shards."""
        return sum(manifest.tokens for manifest in self.manifests)

    @property
    def documents(self) -> int:
        """In all shards."""
        return sum(manifest.documents for manifest in self.manifests)

    @property
    def bytes(self) -> int:
        """UTF-8 bytes of text in all shards."""
        return sum(manifest.bytes for manifest in self.manifests)

    def lengths(self) -> np.ndarray:
        """[n] tokens of every document."""
        readers = (check_shard(*shard) for shard in zip(self.shards, self.manifests, strict=True))
        return np.concatenate([reader.lengths for reader in readers])


@dataclass(frozen=True)
class Share:
    """What a run reads of one source: its weight, its tokens, and the passes over its training part."""

    name: str
    available: int
    weight: float
    tokens: float
    epochs: float


@dataclass(frozen=True)
class BlendOptions:
    """How to blend.

    Attributes:
        budget: tokens that the run reads.
        method: proportional to tokens; to tokens ** (1 / temperature); explicit weights; or unimax (Chung et al. 2023,
            arXiv:2304.09151): as equal as can be without reading a source more than ``max_epochs`` times.
        temperature: for that method.
        weights: for "explicit", by name.
        max_epochs: reading a source more often is refused.
        train_share: share of each source that is the training part (``data.split``).
    """

    budget: int
    method: Method = "proportional"
    temperature: float = 1.0
    weights: Mapping[str, float] | None = None
    max_epochs: float = MAX_EPOCHS
    train_share: float = 0.98


def read_sources(prefixes: Sequence[Path]) -> list[SourceData]:
    """The manifests of all sources, checked against their files.

    Raises:
        DataError: files missing or changed, the same tokens twice, or several tokenizers.
    """
    names = [prefix.name for prefix in prefixes]
    sources = []
    seen: dict[str, Path] = {}
    for prefix in prefixes:
        shards = tuple(find_shards(prefix))
        manifests = tuple(read_index_manifest(shard) for shard in shards)
        for shard, manifest in zip(shards, manifests, strict=True):
            check_shard(shard, manifest)
            if (digest := manifest.sha256["bin"]) in seen:
                got = f"{seen[digest]} and {shard}"
                raise DataError("two sources hold the same tokens", got=got, remedy="give one of them")
            seen[digest] = shard
        name = prefix.name if names.count(prefix.name) == 1 else str(prefix)
        sources.append(SourceData(name, shards, manifests))
    fingerprints = {source.manifests[0].tokenizer_fingerprint: source.name for source in sources}
    if len({manifest.tokenizer_fingerprint for source in sources for manifest in source.manifests}) > 1:
        raise DataError(
            "sources were encoded with different tokenizers",
            got=", ".join(f"{name}: {fingerprint[:16]}" for fingerprint, name in fingerprints.items()),
            expected="one tokenizer",
            remedy="preprocess them again with the tokenizer of the run",
        )
    return sources


def blend(available: Mapping[str, int], options: BlendOptions) -> list[Share]:
    """Weights that sum to 1, and the epochs that they mean.

    Args:
        available: tokens of the training part of every source.
        options: how to blend.

    Raises:
        DataError: weights that do not fit, or a source that would be read more than ``max_epochs`` times.
    """
    raw = _raw_weights(available, options)
    scale = options.budget / sum(raw.values())
    shares = [
        Share(name, tokens, raw[name] * scale / options.budget, raw[name] * scale, raw[name] * scale / tokens)
        for name, tokens in available.items()
    ]
    if often := [share for share in shares if share.epochs > options.max_epochs * (1 + _ROUNDING)]:
        reach = min(options.max_epochs * share.available / share.weight for share in shares)
        most = options.max_epochs * sum(available.values())
        raise DataError(
            f"{len(often)} of {len(shares)} sources would be repeated too often",
            got=", ".join(f"{share.name}: {share.epochs:.2f} epochs" for share in often),
            expected=f"at most {options.max_epochs:g} epochs of each",
            remedy=f"a budget of at most {int(reach):,} tokens with these weights (unimax reaches {int(most):,}), more "
            f"text, or --max-epochs {math.ceil(max(share.epochs for share in often) * 100) / 100:g}",
        )
    return shares


def unimax(available: Mapping[str, int], budget: float, max_epochs: float) -> dict[str, float]:
    """Tokens of every source: equal parts of the budget; what a small source cannot give is divided among the others.

    Chung et al. 2023, "UniMax", algorithm 1: sources from the smallest on, each gets an equal part of what is left of
    the budget, at most ``max_epochs`` times its size.
    """
    result = {}
    left = float(budget)
    order = sorted(available, key=lambda name: (available[name], name))
    for index, name in enumerate(order):
        result[name] = min(left / (len(order) - index), max_epochs * available[name])
        left -= result[name]
    return {name: result[name] for name in available}


def write_blend(path: Path, sources: Sequence[SourceData], shares: Sequence[Share], options: BlendOptions) -> None:
    """A YAML file for ``data: {from: FILE}`` of a run; a source of several shards is divided by their tokens.

    Shards beside the file or below its folder are named relative to it, so that all of it can be moved together.

    Raises:
        DataError: the file exists, or cannot be written.
    """
    folder = path.resolve().parent
    lines = [
        "# Written by `megatron-ko data blend`; in a run file:  data: {from: THIS_FILE, tokenizer: ..., ...}",
        f"# {options.method}, {options.budget:,} tokens, at most {options.max_epochs:g} epochs of a source, "
        f"{options.train_share:g} of each for training",
        "sources:",
    ]
    for source, share in zip(sources, shares, strict=True):
        lines.append(f"  # {source.name}: {share.tokens:,.0f} of {share.available:,} tokens, {share.epochs:.3f} epochs")
        for shard, manifest in zip(source.shards, source.manifests, strict=True):
            weight = share.weight * manifest.tokens / source.tokens
            place, name = (json.dumps(text, ensure_ascii=False) for text in (_seen_from(folder, shard), source.name))
            lines.append(f"  - {{prefix: {place}, name: {name}, weight: {weight!r}}}")
    with explain_disk_errors(path), StagedFiles([path]) as staged:
        staged.open(path).write(("\n".join(lines) + "\n").encode("utf-8"))
        staged.publish()


def _seen_from(folder: Path, shard: Path) -> str:
    whole = shard.resolve()
    return str(whole.relative_to(folder) if whole.is_relative_to(folder) else whole)


def _raw_weights(available: Mapping[str, int], options: BlendOptions) -> Mapping[str, float]:
    if empty := [name for name, tokens in available.items() if tokens <= 0]:
        raise DataError("a source has no tokens to train on", got=", ".join(empty), remedy="leave it out")
    if options.method == "unimax":
        return unimax(available, options.budget, options.max_epochs)
    if options.method == "explicit":
        weights = options.weights or {}
        if weights.keys() != available.keys() or not all(0 < weight < float("inf") for weight in weights.values()):
            raise DataError(
                "weights do not fit the sources",
                got=", ".join(f"{name}={weight:g}" for name, weight in weights.items()) or "none",
                expected=f"a weight above 0 for each of: {', '.join(available)}",
                remedy="--weights NAME=SHARE for every source; leave out a source that is not to be read",
            )
        return weights
    temperature = options.temperature if options.method == "temperature" else 1.0
    # Relative to the largest, so that no power overflows.
    largest = max(available.values())
    return {name: (tokens / largest) ** (1 / temperature) for name, tokens in available.items()}
