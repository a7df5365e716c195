"""Encoded parts to indexed files, by streaming; every count is compared with what the encoders counted."""

import hashlib
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

import numpy as np
import orjson

from megatron_ko import __version__
from megatron_ko.data.jobs.job import Part
from megatron_ko.data.tokens.identity import ChatRows, EncodedWith
from megatron_ko.data.tokens.indexed import IndexedWriter, bin_path, idx_path
from megatron_ko.data.tokens.manifest import (
    IndexManifest,
    SourceFile,
    check_shard,
    manifest_path,
    marks_path,
    read_index_manifest,
    rejected_path,
)
from megatron_ko.data.tokens.marks import is_trained
from megatron_ko.data.tokens.parts import EncodeStatistics, Layout, PartView
from megatron_ko.errors import conserve
from megatron_ko.storage.files import StagedFiles, explain_disk_errors

# Tokens that are copied at a time.
_STEP = 1 << 21


@dataclass(frozen=True)
class MergePlan:
    """What all shards of a job have in common.

    Attributes:
        folder: where they are written.
        keys: text fields.
        names: of the files of every key and shard, without suffix.
        layout: of the parts.
        tokenizer: what encoded the text.
        sources: (path, bytes, xxh3_128) of the inputs, in order.
        unencodable: documents that characters without tokens were replaced in, or dropped from; see the manifest.
        chat, records: of conversations; see the manifest.
    """

    folder: Path
    keys: tuple[str, ...]
    names: tuple[tuple[str, ...], ...]
    layout: Layout
    tokenizer: EncodedWith
    sources: tuple[tuple[str, int, str], ...]
    unencodable: dict[str, int]
    chat: ChatRows | None
    records: dict[str, int]


@dataclass(frozen=True)
class PartRange:
    """Documents ``first`` up to ``last`` of a part."""

    part: Part[EncodeStatistics]
    first: int
    last: int


def ranges_of_shards(parts: Sequence[Part[EncodeStatistics]], borders: Sequence[int]) -> list[list[PartRange]]:
    """The ranges of every shard, in order; a part without documents goes with the one that follows it."""
    shards: list[list[PartRange]] = [[] for _ in borders[1:]]
    position = 0
    for part in parts:
        documents = part.statistics["documents"]
        number = min(bisect_right(borders, position) - 1, len(shards) - 1)
        if not documents:
            shards[number].append(PartRange(part, 0, 0))
            continue
        while number < len(shards) and borders[number] < position + documents:
            first, last = max(borders[number], position), min(borders[number + 1], position + documents)
            shards[number].append(PartRange(part, first - position, last - position))
            number += 1
        position += documents
    return shards


class MergeShard:
    """Writes the files of one key and shard into the job's folder, the manifest last; skips what is there already."""

    def __init__(self, plan: MergePlan, shards: Sequence[Sequence[PartRange]]) -> None:
        self._plan, self._shards = plan, shards

    def __call__(self, which: tuple[int, int]) -> tuple[int, int]:
        key, shard = which
        prefix = self._plan.folder / self._plan.names[key][shard]
        if not manifest_path(prefix).exists():
            for path in (bin_path(prefix), idx_path(prefix), marks_path(prefix), rejected_path(prefix)):
                path.unlink(missing_ok=True)
            with explain_disk_errors(prefix):
                self._write(key, shard, prefix)
        return which

    def _write(self, key: int, shard: int, prefix: Path) -> None:
        layout = self._plan.layout
        finals = [bin_path(prefix), idx_path(prefix), marks_path(prefix), rejected_path(prefix), manifest_path(prefix)]
        with StagedFiles(finals) as staged:
            writer = IndexedWriter(staged.open(bin_path(prefix)), layout.dtype, prefix.parent)
            marks = _Marks(staged.open(marks_path(prefix))) if layout.marks else None
            tally = _Tally()
            rejected_stream = None
            for part_range in self._shards[shard]:
                view = PartView(part_range.part, layout)
                tally.add(view, part_range, key)
                for ids, lengths in _batches(view, part_range, key):
                    if ids.size:
                        tally.max_token_id = max(tally.max_token_id, int(ids.max()))
                    writer.add(ids, lengths)
                if marks:
                    marks.add(view.marks(key, part_range.first, part_range.last))
                for line in view.rejected(part_range.first, part_range.last):
                    rejected_stream = rejected_stream or staged.open(rejected_path(prefix))
                    rejected_stream.write(line)
                    tally.reject(line)
            conserve("documents, tokens", (tally.documents, tally.tokens), (writer.documents, writer.tokens))
            idx_sha256 = writer.write_index(staged.open(idx_path(prefix)))
            manifest = self._manifest(key, shard, tally, writer, idx_sha256)
            if marks:
                conserve("marked tokens", writer.tokens, marks.tokens)
                manifest = marks.described_in(manifest, self._plan)
            staged.open(manifest_path(prefix)).write(manifest.to_json().encode("utf-8"))
            staged.publish()
        check_shard(prefix, read_index_manifest(prefix))

    def _manifest(self, key: int, shard: int, tally: "_Tally", writer: IndexedWriter, idx_sha256: str) -> IndexManifest:
        itemsize = self._plan.layout.dtype.itemsize
        whole = len(self._shards) == 1
        return IndexManifest(
            tokenizer_fingerprint=self._plan.tokenizer.fingerprint,
            tokenizer_kind=self._plan.tokenizer.kind,
            vocab_size=self._plan.tokenizer.vocab_size,
            documents=writer.documents,
            tokens=writer.tokens,
            bytes=tally.text_bytes,
            rejected=tally.rejected.total(),
            rejected_reasons=dict(sorted(tally.reasons.items())),
            dtype=self._plan.layout.dtype.name,
            max_token_id=tally.max_token_id,
            eod=self._plan.tokenizer.eod,
            bos=self._plan.tokenizer.bos,
            sizes={"bin": writer.tokens * itemsize, "idx": writer.index_bytes},
            sha256={"bin": writer.sha256.hexdigest(), "idx": idx_sha256},
            sources=tuple(
                SourceFile(path, size, digest, tally.by_source[path], tally.rejected[path])
                for path, size, digest in self._plan.sources
                if whole or tally.by_source[path] or tally.rejected[path]
            ),
            key=self._plan.keys[key],
            shard=(shard, len(self._shards)),
            created_by=f"megatron_ko {__version__}",
            unencodable=self._plan.unencodable,
        )


class _Marks:
    """Writes PREFIX.marks, a byte for every token."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream, self._sha256 = stream, hashlib.sha256()
        self.tokens = self.trained = 0

    def add(self, marks: np.ndarray) -> None:
        """The marks [t] of the next documents."""
        self._stream.write(marks.data)
        self._sha256.update(marks.data)
        self.tokens += marks.size
        self.trained += int(np.count_nonzero(is_trained(marks)))

    def described_in(self, manifest: IndexManifest, plan: MergePlan) -> IndexManifest:
        """The manifest with what there is to know about conversations."""
        return replace(
            manifest,
            chat=plan.chat,
            records=plan.records,
            trained_tokens=self.trained,
            sizes={**manifest.sizes, "marks": self.tokens},
            sha256={**manifest.sha256, "marks": self._sha256.hexdigest()},
        )


class _Tally:
    """Counts what the ranges of a shard hold."""

    def __init__(self) -> None:
        self.documents = self.tokens = self.text_bytes = 0
        self.max_token_id = -1
        self.by_source: Counter[str] = Counter()
        self.rejected: Counter[str] = Counter()
        self.reasons: Counter[str] = Counter()

    def add(self, view: PartView, part_range: PartRange, key: int) -> None:
        self.documents += part_range.last - part_range.first
        whole = (part_range.first, part_range.last) == (0, view.documents)
        lengths = view.lengths(key)[part_range.first : part_range.last]
        # Of a whole part, as the encoder counted; of a range of it, from its lengths.
        self.tokens += view.statistics["tokens"][key] if whole else int(lengths.sum(dtype=np.int64))
        self.text_bytes += view.text_bytes(key, part_range.first, part_range.last)
        for source, documents in view.sources(part_range.first, part_range.last):
            self.by_source[source] += documents

    def reject(self, line: bytes) -> None:
        record = orjson.loads(line)
        self.rejected[record["source"]] += 1
        self.reasons[record["reason"].split(":")[0]] += 1


def _batches(view: PartView, part_range: PartRange, key: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Ids and lengths of the documents of a range, some megabytes at a time."""
    lengths = view.lengths(key)
    ends = np.cumsum(lengths[part_range.first : part_range.last], dtype=np.int64)
    first = 0
    while first < ends.size:
        held = int(ends[first - 1]) if first else 0
        last = max(first + 1, int(np.searchsorted(ends, held + _STEP, side="right")))
        low, high = part_range.first + first, part_range.first + last
        yield view.ids(key, low, high), lengths[low:high]
        first = last
