"""A look into an indexed file: its manifest, the spread of document lengths, and some documents."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from megatron_ko.data.manifest import Manifest, check_shard, read_manifest, verify_shard
from megatron_ko.data.shards import find_shards
from megatron_ko.data.tokenizer.tokenizer import load_tokenizer
from megatron_ko.errors import DataError

_SHOWN_IDS = 32
_SHOWN_CHARACTERS = 400


def inspect_data(prefix: Path, tokenizer_folder: Path | None, samples: int) -> list[dict[str, Any]]:
    """``inspect_shard`` of every shard of PREFIX.

    Raises:
        DataError: a shard is missing or damaged, or given twice.
    """
    return [inspect_shard(shard, tokenizer_folder, samples) for shard in find_shards(prefix)]


def verify_data(prefix: Path) -> list[tuple[Path, Manifest]]:
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


def inspect_shard(prefix: Path, tokenizer_folder: Path | None, samples: int) -> dict[str, Any]:
    """Manifest, lengths in tokens, and ``samples`` documents spread evenly over the file.

    Returns:
        {"prefix", "manifest": ..., "lengths": {...}, "samples": [{"document", "tokens", "ids", "text"}]}; text is None
        without a tokenizer.

    Raises:
        DataError: the files are damaged, or the tokenizer is not the one that encoded them.
    """
    manifest = read_manifest(prefix)
    reader = check_shard(prefix, manifest)
    tokenizer = load_tokenizer(tokenizer_folder) if tokenizer_folder else None
    if tokenizer and tokenizer.fingerprint != manifest.tokenizer_fingerprint:
        raise DataError(
            f"{prefix} was encoded with another tokenizer",
            got=f"{tokenizer_folder} with fingerprint {tokenizer.fingerprint[:16]}",
            expected=manifest.tokenizer_fingerprint[:16],
            remedy="give the folder that it was encoded with",
        )
    shown = []
    for document in np.linspace(0, len(reader) - 1, num=min(samples, len(reader)), dtype=np.int64):
        ids = reader[int(document)].tolist()
        text = tokenizer.decode(ids)[:_SHOWN_CHARACTERS] if tokenizer else None
        shown.append({"document": int(document), "tokens": len(ids), "ids": ids[:_SHOWN_IDS], "text": text})
    percentiles = np.percentile(reader.lengths, [0, 50, 90, 99, 100]).round(1).tolist()
    lengths = dict(zip(("min", "median", "p90", "p99", "max"), percentiles, strict=True))
    return {"prefix": str(prefix), "manifest": asdict(manifest), "lengths": lengths, "samples": shown}
