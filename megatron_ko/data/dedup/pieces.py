"""Repeated paragraphs and lines: the first of each stays, wherever it is; the text around the others is unchanged."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from megatron_ko.data.dedup.arrays import open_arrays, write_arrays
from megatron_ko.data.dedup.clusters import disk_array, stored_array
from megatron_ko.data.dedup.corpus import ChunkArrays, ChunkStatistics, SourceChunk
from megatron_ko.data.dedup.normalise import Normalisation
from megatron_ko.data.dedup.sign import HashRun

_SEPARATORS = {"paragraph": re.compile(r"(\n(?:[^\S\n]*\n)+)"), "line": re.compile(r"(\n)")}


@dataclass(frozen=True)
class PieceSplitter:
    """How texts are cut, and which pieces count: those of at least ``least`` characters after normalisation."""

    level: str
    normalisation: Normalisation
    least: int

    def split(self, text: str) -> list[str]:
        """Pieces and, between them, separators: of odd length, and joined again the text."""
        return _SEPARATORS[self.level].split(text)

    def counted(self, parts: Sequence[str]) -> Iterator[tuple[int, str]]:
        """(place in ``parts``, normalised text) of each piece that counts."""
        for place in range(0, len(parts), 2):
            comparable = self.normalisation(parts[place])
            if len(comparable) >= max(1, self.least):
                yield place, comparable


@dataclass(frozen=True)
class DecidedLevel:
    """A level that is decided: how texts are cut, the first counted piece of each chunk, and a mark for each piece."""

    splitter: PieceSplitter
    firsts: np.ndarray
    marks: Path


class PieceRemover:
    """Removes marked pieces from the documents of one chunk, which must come in order."""

    def __init__(self, levels: Sequence[DecidedLevel], chunk: int) -> None:
        self.removed = {level.splitter.level: 0 for level in levels}
        self.removed_bytes = dict.fromkeys(self.removed, 0)
        self._levels = []
        for level in levels:
            here = slice(int(level.firsts[chunk]), int(level.firsts[chunk + 1]))
            self._levels.append((level.splitter, iter(stored_array(level.marks, "u1")[here].tolist())))

    def __call__(self, text: str) -> str:
        """The text of the next document without its marked pieces; the same object if it has none."""
        for splitter, marks in self._levels:
            parts = splitter.split(text)
            gone = [place for place, _ in splitter.counted(parts) if next(marks)]
            if not gone:
                continue
            before = len(text.encode("utf-8"))
            text = _without(parts, gone)
            self.removed[splitter.level] += len(gone)
            self.removed_bytes[splitter.level] += before - len(text.encode("utf-8"))
        return text


class PiecesStatistics(ChunkStatistics):
    """What is recorded of a chunk: also how many pieces count."""

    pieces: int


class PiecesWork:
    """Writes the hashes of the pieces of one chunk: of documents that stay, after earlier levels removed theirs."""

    def __init__(
        self, key: str, splitter: PieceSplitter, kept: Path, parts: ChunkArrays, levels: Sequence[DecidedLevel]
    ) -> None:
        self._key, self._splitter, self._kept, self._parts, self._levels = key, splitter, kept, parts, list(levels)

    def __call__(self, chunk: SourceChunk, part: Path) -> PiecesStatistics:
        run, remover, pieces = HashRun(), PieceRemover(self._levels, chunk.index), 0
        for text in kept_texts(chunk, self._key, self._kept, self._parts):
            for _, comparable in self._splitter.counted(self._splitter.split(remover(text))):
                run.add(comparable, pieces)
                pieces += 1
        write_arrays(part, run.arrays())
        return {"source": chunk.source, "pieces": pieces, "read": chunk.chunk.read}


def kept_texts(chunk: SourceChunk, key: str, kept: Path, parts: ChunkArrays) -> Iterator[str]:
    """Texts of the documents of a chunk that stay, in order."""
    number = int(parts.firsts[chunk.index])
    kept_for = stored_array(kept, "<i8")
    for parsed in chunk.parsed(key):
        for text in parsed.texts:
            if kept_for[number] == number:
                yield text
            number += 1


def mark_pieces(path: Path, parts: ChunkArrays, joined: Sequence[Path], existing: int = 0) -> None:
    """Write one byte a piece: 1 for those that repeat an earlier one; the first ``existing`` all stay."""
    marks = disk_array(path, parts.total, "u1")
    for chunk, first in enumerate(parts.firsts[:-1]):
        marks[parts[chunk]["again"] + first] = 1
    for part in joined:
        marks[open_arrays(part)["again"]] = 1
    marks[:existing] = 0


def _without(parts: list[str], gone: Sequence[int]) -> str:
    """Each piece goes with the separator behind it; the last one with the separator before it."""
    dropped = {place for piece in gone for place in (piece, piece + 1)}
    left = [part for place, part in enumerate(parts) if place not in dropped]
    return "".join(left[:-1] if len(left) % 2 == 0 else left)
