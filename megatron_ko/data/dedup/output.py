"""The last pass: write the documents that stay, and list the others with the document that is kept for each."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NotRequired, TypedDict

import numpy as np
import orjson
import zstandard

from megatron_ko.data.dedup.clusters import stored_array
from megatron_ko.data.dedup.corpus import ChunkArrays, ChunkStatistics, SourceChunk, read_corpus
from megatron_ko.data.dedup.options import InputFiles
from megatron_ko.data.dedup.pieces import DecidedLevel, PieceRemover
from megatron_ko.data.dedup.verify import similarity
from megatron_ko.data.text.documents import Document
from megatron_ko.data.text.writers import DocumentWriter
from megatron_ko.errors import DataError

_EXCERPT = 160
_BATCH = 4096


@dataclass(frozen=True)
class Decisions:
    """Which documents and pieces go.

    Attributes:
        documents: of all chunks.
        same_text: file: [n] the first document with the same text.
        kept: file: [n] the document of its cluster that stays.
        levels: paragraphs, lines.
    """

    documents: ChunkArrays
    same_text: Path
    kept: Path
    levels: tuple[DecidedLevel, ...] = ()


class WriteStatistics(ChunkStatistics):
    """What is recorded of a written chunk.

    Attributes:
        documents, bytes: that were written.
        emptied, emptied_bytes: documents of which nothing was left, and the white space that remained in them.
        pieces, pieces_bytes: that were removed, by level.
        excerpts: how the shown documents begin, by number.
    """

    documents: int
    bytes: int
    emptied: int
    emptied_bytes: int
    pieces: dict[str, int]
    pieces_bytes: dict[str, int]
    excerpts: dict[str, str]


class RemovedStatistics(TypedDict):
    """What is recorded of the removed documents of a chunk.

    Attributes:
        pairs: source, source of the kept document, reason, number of documents, bytes.
        similarity_tenths: number of near duplicates by tenth of their similarity to the kept document.
    """

    pairs: list[tuple[int, int, str, int, int]]
    similarity_tenths: list[int]


class RemovedLine(TypedDict):
    """A line of removed.jsonl.zst."""

    source: str
    position: int
    reason: str
    kept_source: str
    kept_position: int
    similarity: NotRequired[float]


class WriteWork:
    """Writes the documents of one chunk that stay. Their texts are unchanged, except for pieces that go.

    Args:
        files: the inputs.
        decisions: which documents and pieces go.
        shown: numbers of documents whose beginning is wanted for the report.
    """

    def __init__(self, files: InputFiles, decisions: Decisions, shown: frozenset[int]) -> None:
        self._key, self._sources, self._decisions, self._shown = files.key, files.paths, decisions, shown

    def __call__(self, chunk: SourceChunk, part: Path) -> WriteStatistics:
        remover = PieceRemover(self._decisions.levels, chunk.index)
        excerpts: dict[str, str] = {}
        written = written_bytes = emptied = emptied_bytes = 0
        with DocumentWriter(part, self._key) as writer:
            for document, stays in self._documents(chunk, excerpts):
                if not stays:
                    continue
                text = remover(document.text)
                if not text.strip():
                    emptied += 1
                    emptied_bytes += len(text.encode("utf-8"))
                    continue
                writer.write(document if text is document.text else replace(document, text=text))
                written += 1
                written_bytes += len(text.encode("utf-8"))
        return {
            "source": chunk.source,
            "documents": written,
            "bytes": written_bytes,
            "emptied": emptied,
            "emptied_bytes": emptied_bytes,
            "pieces": remover.removed,
            "pieces_bytes": remover.removed_bytes,
            "excerpts": excerpts,
            "read": chunk.chunk.read,
        }

    def _documents(self, chunk: SourceChunk, excerpts: dict[str, str]) -> Iterator[tuple[Document, bool]]:
        firsts = self._decisions.documents.firsts
        first = number = int(firsts[chunk.index])
        last = int(firsts[chunk.index + 1])
        stays = (stored_array(self._decisions.kept, "<i8")[first:last] == np.arange(first, last)).tolist()
        source = str(self._sources[chunk.source])
        for parsed in chunk.parsed(self._key):
            for document in parsed.documents(source):
                if number == last:
                    raise _changed(source)
                if number in self._shown:
                    excerpts[str(number)] = document.text[:_EXCERPT]
                yield document, stays[number - first]
                number += 1
        if number != last:
            raise _changed(source)


def existing_excerpts(files: InputFiles, parts: ChunkArrays, shown: frozenset[int]) -> dict[str, str]:
    """How the shown documents of an existing corpus begin, by number. It is not written, so it is read here."""
    excerpts: dict[str, str] = {}
    wanted = [number for number in sorted(shown) if number < parts.items_before(files.existing)]
    chunks = set(parts.chunk_of(np.array(wanted, np.int64)).tolist())
    for source in sorted({int(parts.sources[chunk]) for chunk in chunks}):
        for index, chunk in read_corpus(files, [source], parts.chunks_before(source)):
            if index in chunks:
                texts = [text for parsed in chunk.parsed(files.key) for text in parsed.texts]
                first, last = parts.firsts[index : index + 2]
                here = [number for number in wanted if first <= number < last]
                excerpts |= {str(number): texts[number - first][:_EXCERPT] for number in here}
    return excerpts


class RemovedWork:
    """Lists the documents of one chunk that go: lines of JSON, compressed. The payload is the number of the chunk."""

    def __init__(self, decisions: Decisions, sources: Sequence[Path], near: bool) -> None:
        self._decisions, self._sources, self._near = decisions, [str(path) for path in sources], near

    def __call__(self, chunk: int, part: Path) -> RemovedStatistics:
        documents = self._decisions.documents
        first, last = (int(border) for border in documents.firsts[chunk : chunk + 2])
        kept = stored_array(self._decisions.kept, "<i8")[first:last]
        gone = np.flatnonzero(kept != np.arange(first, last)) + first
        tally: Counter[tuple[int, int, str]] = Counter()
        tally_bytes: Counter[tuple[int, int, str]] = Counter()
        similarities: list[float] = []
        with part.open("wb") as stream, zstandard.ZstdCompressor(level=3).stream_writer(stream) as lines:
            for begin in range(0, gone.size, _BATCH):
                for line, pair, size in self._lines(chunk, gone[begin : begin + _BATCH]):
                    lines.write(orjson.dumps(line) + b"\n")
                    tally[pair] += 1
                    tally_bytes[pair] += size
                    if "similarity" in line:
                        similarities.append(line["similarity"])
        tenths = np.histogram(similarities, bins=10, range=(0.0, 1.0))[0].tolist()
        return {
            "pairs": [(*pair, number, tally_bytes[pair]) for pair, number in sorted(tally.items())],
            "similarity_tenths": tenths,
        }

    def _lines(self, chunk: int, numbers: np.ndarray) -> Iterator[tuple[RemovedLine, tuple[int, int, str], int]]:
        parts = self._decisions.documents
        same_text = stored_array(self._decisions.same_text, "<i8")
        kept = stored_array(self._decisions.kept, "<i8")[numbers]
        near = (same_text[numbers] == numbers) & (same_text[kept] != same_text[numbers])
        # The sketch of a text is kept with the first document that has it.
        alike = np.zeros(numbers.size)
        if self._near:
            alike[near] = similarity(parts, numbers[near], same_text[kept[near]])
        arrays = parts[chunk]
        local = numbers - parts.firsts[chunk]
        source = int(parts.sources[chunk])
        others = parts.sources[parts.chunk_of(kept)].tolist()
        columns = (arrays["positions"][local], arrays["bytes"][local], parts.gather("positions", kept), near, alike)
        for other, position, size, kept_position, is_near, value in zip(
            others, *(column.tolist() for column in columns), strict=True
        ):
            reason = "near" if is_near else "exact"
            line: RemovedLine = {
                "source": self._sources[source],
                "position": position,
                "reason": reason,
                "kept_source": self._sources[other],
                "kept_position": kept_position,
            }
            if is_near:
                line["similarity"] = round(value, 3)
            yield line, (source, other, reason), size


def _changed(source: str) -> DataError:
    return DataError(
        f"{source} has changed since the first pass",
        expected="inputs that nobody writes to while they are read",
        remedy="remove the .parts folder beside the output and start again",
    )
