"""Paragraphs and lines: the first of each stays, wherever it stands; the text around what goes is not touched."""

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

    def cut(self, text: str) -> list[str]:
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
    """A level that is decided: its cutting, the first counted piece of each chunk, and a mark for each that goes."""

    cutting: PieceSplitter
    firsts: np.ndarray
    marks: Path


class PieceRemover:
    """Takes out of the documents of one chunk, in order, what earlier levels have marked."""

    def __init__(self, levels: Sequence[DecidedLevel], chunk: int) -> None:
        self.removed = {level.cutting.level: 0 for level in levels}
        self.removed_bytes = dict.fromkeys(self.removed, 0)
        self._levels = []
        for level in levels:
            here = slice(int(level.firsts[chunk]), int(level.firsts[chunk + 1]))
            self._levels.append((level.cutting, iter(stored_array(level.marks, "u1")[here].tolist())))

    def __call__(self, text: str) -> str:
        """What is left of the text of the next document; the same object if that is all."""
        for cutting, marks in self._levels:
            parts = cutting.cut(text)
            gone = [place for place, _ in cutting.counted(parts) if next(marks)]
            if not gone:
                continue
            before = len(text.encode("utf-8"))
            text = _without(parts, gone)
            self.removed[cutting.level] += len(gone)
            self.removed_bytes[cutting.level] += before - len(text.encode("utf-8"))
        return text


class PiecesStatistics(ChunkStatistics):
    """What is recorded of a chunk: also how many pieces count."""

    pieces: int


class PiecesWork:
    """Writes the hashes of one chunk's pieces, of the documents that stay and as earlier levels have left them."""

    def __init__(
        self, key: str, cutting: PieceSplitter, kept: Path, parts: ChunkArrays, levels: Sequence[DecidedLevel]
    ) -> None:
        self._key, self._cutting, self._kept, self._parts, self._levels = key, cutting, kept, parts, list(levels)

    def __call__(self, chunk: SourceChunk, part: Path) -> PiecesStatistics:
        run, surgeon, pieces = HashRun(), PieceRemover(self._levels, chunk.index), 0
        for text in kept_texts(chunk, self._key, self._kept, self._parts):
            for _, comparable in self._cutting.counted(self._cutting.cut(surgeon(text))):
                run.add(comparable, pieces)
                pieces += 1
        write_arrays(part, run.arrays())
        return {"source": chunk.source, "pieces": pieces, "read": chunk.chunk.read}


def kept_texts(chunk: SourceChunk, key: str, kept: Path, parts: ChunkArrays) -> Iterator[str]:
    """Texts of the documents of a chunk that stay, in order."""
    number = int(parts.firsts[chunk.index])
    fates = stored_array(kept, "<i8")
    for parsed in chunk.parsed(key):
        for text in parsed.texts:
            if fates[number] == number:
                yield text
            number += 1


def mark_pieces(path: Path, parts: ChunkArrays, joined: Sequence[Path]) -> None:
    """Write one byte a piece: 1 for those that repeat an earlier one."""
    marks = disk_array(path, parts.total, "u1")
    for chunk, first in enumerate(parts.firsts[:-1]):
        marks[parts[chunk]["again"] + first] = 1
    for part in joined:
        marks[open_arrays(part)["again"]] = 1


def _without(parts: list[str], gone: Sequence[int]) -> str:
    """Each piece goes with the separator behind it; the last one with the separator before it."""
    dropped = {place for piece in gone for place in (piece, piece + 1)}
    left = [part for place, part in enumerate(parts) if place not in dropped]
    return "".join(left[:-1] if len(left) % 2 == 0 else left)
