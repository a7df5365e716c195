"""A look into indexed files: manifests, totals, the spread of document lengths, and some documents."""

from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from megatron_ko.data.tokenizer.tokenizer import Tokenizer, load_tokenizer
from megatron_ko.data.tokens.indexed import IndexedReader
from megatron_ko.data.tokens.manifest import IndexManifest, check_shard, read_manifest, verify_shard
from megatron_ko.data.tokens.shards import find_shards
from megatron_ko.errors import DataError

_SHOWN_IDS = 32
_SHOWN_CHARACTERS = 400


def inspect_data(prefix: Path, tokenizer_folder: Path | None, samples: int) -> dict[str, Any]:
    """What PREFIX holds: one file, all its shards, or a folder.

    Returns:
        {"prefix", "totals", "sources": documents by source, "lengths", "histogram": [[least, most, documents]],
        "shards": [{"prefix", "manifest", "samples": [{"document", "tokens", "ids", "text"}]}]}; lengths are in tokens;
        text is None without a tokenizer; ``samples`` documents are spread evenly over every shard.

    Raises:
        DataError: a shard is missing, damaged, or encoded with another tokenizer.
    """
    tokenizer = load_tokenizer(tokenizer_folder) if tokenizer_folder else None
    shards: list[dict[str, Any]] = []
    lengths: list[np.ndarray] = []
    sources: Counter[str] = Counter()
    for shard in find_shards(prefix):
        manifest = read_manifest(shard)
        reader = check_shard(shard, manifest)
        if tokenizer:
            _check_tokenizer(shard, manifest, tokenizer)
        lengths.append(reader.lengths)
        sources.update({source.path: source.documents for source in manifest.sources})
        shown = _samples(reader, tokenizer, samples)
        shards.append({"prefix": str(shard), "manifest": asdict(manifest), "samples": shown})
    names = ("documents", "tokens", "bytes", "rejected")
    return {
        "prefix": str(prefix),
        "totals": {name: sum(shard["manifest"][name] for shard in shards) for name in names},
        "sources": dict(sources.most_common()),
        **_spread(np.concatenate(lengths)),
        "shards": shards,
    }


def verify_data(prefix: Path) -> list[tuple[Path, IndexManifest]]:
    """``verify_shard`` of every shard of PREFIX.

    Raises:
        DataError: the first difference, or two shards that hold the same tokens.
    """
    checked = [(shard, verify_shard(shard)) for shard in find_shards(prefix)]
    seen: dict[str, Path] = {}
    for shard, manifest in checked:
        digest = manifest.sha256["bin"]
        if digest in seen:
            raise DataError("two shards hold the same tokens", got=f"{seen[digest]} and {shard}", remedy="remove one")
        seen[digest] = shard
    return checked


def _check_tokenizer(prefix: Path, manifest: IndexManifest, tokenizer: Tokenizer) -> None:
    if tokenizer.fingerprint != manifest.tokenizer_fingerprint:
        raise DataError(
            f"{prefix} was encoded with another tokenizer",
            got=f"{tokenizer.folder} with fingerprint {tokenizer.fingerprint[:16]}",
            expected=manifest.tokenizer_fingerprint[:16],
            remedy="give the folder that it was encoded with",
        )


def _samples(reader: IndexedReader, tokenizer: Tokenizer | None, number: int) -> list[dict[str, Any]]:
    shown = []
    for document in np.linspace(0, len(reader) - 1, num=min(number, len(reader)), dtype=np.int64):
        ids = reader[int(document)].tolist()
        text = tokenizer.decode(ids)[:_SHOWN_CHARACTERS] if tokenizer else None
        shown.append({"document": int(document), "tokens": len(ids), "ids": ids[:_SHOWN_IDS], "text": text})
    return shown


def _spread(lengths: np.ndarray) -> dict[str, Any]:
    """Percentiles, and documents by powers of two of their length."""
    percentiles = np.percentile(lengths, [0, 50, 90, 99, 100]).round(1).tolist()
    powers, counts = np.unique(np.ceil(np.log2(np.maximum(lengths, 1))).astype(int), return_counts=True)
    return {
        "lengths": dict(zip(("min", "median", "p90", "p99", "max"), percentiles, strict=True)),
        "histogram": [
            [0 if power == 0 else 2 ** (power - 1) + 1, 2**power, count]
            for power, count in zip(powers.tolist(), counts.tolist(), strict=True)
        ],
    }
