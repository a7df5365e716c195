"""What indexed files hold: manifests, totals, the spread of document lengths, and some documents."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from megatron_ko.data.tokenizer.tokenizer import Tokenizer, load_tokenizer
from megatron_ko.data.tokens.indexed import IndexedReader
from megatron_ko.data.tokens.manifest import IndexManifest, check_shard, read_index_manifest, verify_shard
from megatron_ko.data.tokens.shards import find_shards
from megatron_ko.errors import DataError

_SHOWN_IDS = 32
_SHOWN_CHARACTERS = 400


@dataclass(frozen=True)
class DocumentView:
    """One document: its number, its tokens, the first ids, and the beginning of its text (None without a tokenizer)."""

    document: int
    tokens: int
    ids: list[int]
    text: str | None


@dataclass(frozen=True)
class ShardView:
    """One shard, and some of its documents."""

    prefix: str
    manifest: IndexManifest
    samples: list[DocumentView]


@dataclass(frozen=True)
class IndexTotals:
    """Sums over all shards; bytes are UTF-8 bytes of text."""

    documents: int
    tokens: int
    bytes: int
    rejected: int


@dataclass(frozen=True)
class Inspection:
    """What indexed data holds.

    Attributes:
        prefix: as it was given.
        totals: over all shards.
        sources: documents by source, most first.
        lengths: smallest, median, percentiles and largest number of tokens in a document.
        histogram: (least, most, documents): documents by powers of two of their length.
        shards: each with some of its documents.
    """

    prefix: str
    totals: IndexTotals
    sources: dict[str, int]
    lengths: dict[str, float]
    histogram: list[tuple[int, int, int]]
    shards: list[ShardView]


def inspect_data(prefix: Path, tokenizer_folder: Path | None, samples: int) -> Inspection:
    """What PREFIX holds: one file, all its shards, or a folder.

    Args:
        prefix: of the files.
        tokenizer_folder: decodes the shown documents; None shows their ids only.
        samples: documents to show, spread evenly over every shard.

    Raises:
        DataError: a shard is missing, damaged, or encoded with another tokenizer.
    """
    tokenizer = load_tokenizer(tokenizer_folder) if tokenizer_folder else None
    shards: list[ShardView] = []
    lengths: list[np.ndarray] = []
    sources: Counter[str] = Counter()
    for shard in find_shards(prefix):
        manifest = read_index_manifest(shard)
        reader = check_shard(shard, manifest)
        if tokenizer:
            check_tokenizer(shard, manifest, tokenizer)
        lengths.append(reader.lengths)
        sources.update({source.path: source.documents for source in manifest.sources})
        shards.append(ShardView(str(shard), manifest, _samples(reader, tokenizer, samples)))
    every = np.concatenate(lengths)
    return Inspection(
        prefix=str(prefix),
        totals=IndexTotals(
            documents=sum(shard.manifest.documents for shard in shards),
            tokens=sum(shard.manifest.tokens for shard in shards),
            bytes=sum(shard.manifest.bytes for shard in shards),
            rejected=sum(shard.manifest.rejected for shard in shards),
        ),
        sources=dict(sources.most_common()),
        lengths=_percentiles(every),
        histogram=_histogram(every),
        shards=shards,
    )


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


def check_tokenizer(prefix: Path, manifest: IndexManifest, tokenizer: Tokenizer) -> None:
    """Refuse to decode with another tokenizer than the one that encoded.

    Raises:
        DataError: both fingerprints.
    """
    if tokenizer.fingerprint != manifest.tokenizer_fingerprint:
        raise DataError(
            f"{prefix} was encoded with another tokenizer",
            got=f"{tokenizer.folder} with fingerprint {tokenizer.fingerprint[:16]}",
            expected=manifest.tokenizer_fingerprint[:16],
            remedy="give the folder that it was encoded with",
        )


def _samples(reader: IndexedReader, tokenizer: Tokenizer | None, number: int) -> list[DocumentView]:
    shown = []
    for document in np.linspace(0, len(reader) - 1, num=min(number, len(reader)), dtype=np.int64):
        ids = reader[int(document)].tolist()
        text = tokenizer.decode(ids)[:_SHOWN_CHARACTERS] if tokenizer else None
        shown.append(DocumentView(int(document), len(ids), ids[:_SHOWN_IDS], text))
    return shown


def _percentiles(lengths: np.ndarray) -> dict[str, float]:
    percentiles = np.percentile(lengths, [0, 50, 90, 99, 100]).round(1).tolist()
    return dict(zip(("min", "median", "p90", "p99", "max"), percentiles, strict=True))


def _histogram(lengths: np.ndarray) -> list[tuple[int, int, int]]:
    powers, counts = np.unique(np.ceil(np.log2(np.maximum(lengths, 1))).astype(int), return_counts=True)
    return [
        (0 if power == 0 else 2 ** (power - 1) + 1, 2**power, count)
        for power, count in zip(powers.tolist(), counts.tolist(), strict=True)
    ]
