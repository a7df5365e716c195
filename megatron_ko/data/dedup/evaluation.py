"""An index of the n-grams of evaluation items, which no document may share."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np

from megatron_ko.data.dedup.normalise import Normalisation
from megatron_ko.data.dedup.shingles import Ragged, range_hashes, shingle_units, window_hashes, word_hashes
from megatron_ko.data.text.blocks import read_blocks
from megatron_ko.data.text.documents import parse_block
from megatron_ko.data.text.formats import Encoding
from megatron_ko.data.text.records import Block
from megatron_ko.errors import DataError

_NORMALISED = Normalisation(frozenset({"nfc", "case", "punctuation", "space"}))
# Hashes are looked up in a table of their leading bits first.
_TABLE_BITS = 22


@dataclass(frozen=True)
class NgramRule:
    """Which n-grams are compared.

    Attributes:
        unit: "eojeol", what stands between blanks, or "char", letters and digits without blanks, for which differences
            in spacing do not count. In both cases letters are lower case, and punctuation is left out.
        size: units that an item and a document must share, one after another.
        shortest: an item of fewer than ``size`` units is searched for as a whole if it has at least this many.
    """

    unit: Literal["eojeol", "char"] = "eojeol"
    size: int = 13
    shortest: int = 6

    def prepared(self, text: str) -> str:
        """The comparable form of a text."""
        text = _NORMALISED(text)
        return text if self.unit == "eojeol" else text.replace(" ", "")

    def units(self, texts: Sequence[str]) -> tuple[Ragged, np.ndarray, np.ndarray]:
        """Hashes of the units of prepared texts, and where each begins and ends in its text."""
        if self.unit == "eojeol":
            words = word_hashes(texts)
            return words.words, words.begins, words.ends
        units = shingle_units(texts)
        place = np.arange(units.values.size) - np.repeat(units.offsets[:-1], units.lengths)
        return units, place, place + 1


@dataclass(frozen=True)
class EvaluationItem:
    """One text of an evaluation file: the record's number, the field, and how many n-grams it has."""

    file: str
    position: int
    field: str
    grams: int


@dataclass(frozen=True)
class Match:
    """An n-gram that a document shares with an item: its number in the index, and its place in the prepared text."""

    row: int
    item: int
    gram: int
    begin: int
    end: int


@dataclass(frozen=True)
class EvaluationIndex:
    """n-grams of all items, sorted by the hash of their first ``shortest`` units.

    Attributes:
        grams: what they are made of.
        heads: [g] uint64 hashes of the first units.
        whole: [g] uint64 hashes of all units.
        lengths: [g] units.
        items: [g] numbers of the items.
    """

    grams: NgramRule
    heads: np.ndarray
    whole: np.ndarray
    lengths: np.ndarray
    items: np.ndarray

    def find(self, texts: Sequence[str]) -> Iterator[Match]:
        """All n-grams that prepared texts share with items, in order."""
        units, begins, ends = self.grams.units(texts)
        heads = window_hashes(units, self.grams.shortest)
        rows = np.repeat(np.arange(len(heads)), heads.lengths)
        starts = units.offsets[rows] + np.arange(heads.values.size) - heads.offsets[rows]
        likely = np.flatnonzero(self._table.take((heads.values >> np.uint64(64 - _TABLE_BITS)).astype(np.int64)))
        first = np.searchsorted(self.heads, heads.values[likely], side="left")
        counts = np.searchsorted(self.heads, heads.values[likely], side="right") - first
        place = np.repeat(likely, counts)
        entry = np.arange(place.size) + np.repeat(first - (np.cumsum(counts) - counts), counts)
        stops = starts[place] + self.lengths[entry]
        inside = stops <= units.offsets[rows[place] + 1]
        place, entry, stops = place[inside], entry[inside], stops[inside]
        equal = range_hashes(units.values, starts[place], stops) == self.whole[entry]
        for where, found, stop in zip(place[equal].tolist(), entry[equal].tolist(), stops[equal].tolist(), strict=True):
            begin, end = int(begins[starts[where]]), int(ends[stop - 1])
            yield Match(int(rows[where]), int(self.items[found]), found, begin, end)

    @cached_property
    def _table(self) -> np.ndarray:
        table = np.zeros(1 << _TABLE_BITS, bool)
        table[(self.heads >> np.uint64(64 - _TABLE_BITS)).astype(np.int64)] = True
        return table


def read_items(paths: Sequence[Path], keys: Sequence[str]) -> list[tuple[str, int, str, str]]:
    """(file, record, field, text) of every item.

    Args:
        paths: the evaluation files.
        keys: fields with text; ``dev.tsv:Text`` is one of the files of that name only, which then has no others.

    Raises:
        DataError: a record without the first field, or a field that no record of a file has.
    """
    items: list[tuple[str, int, str, str]] = []
    for path, names in zip(paths, keys_of_files(paths, keys), strict=True):
        seen = {names[0]}
        for block in _blocks(path, names[0]):
            parsed = parse_block(block, names[0], keep_fields=True)
            if parsed.rejected:
                bad = parsed.rejected[0]
                raise DataError(
                    f"{path} cannot be read as an evaluation file",
                    got=f"record {bad.position}: {bad.reason}",
                    expected=f"every record with a text {names[0]!r}",
                    remedy="--against-key FIELD, as often as there are fields with text",
                )
            for document in parsed.documents(str(path)):
                items.append((str(path), document.position, names[0], document.text))
                for key in names[1:]:
                    value = document.fields.get(key)
                    for text in value if isinstance(value, list) else [value]:
                        if isinstance(text, str) and text.strip():
                            items.append((str(path), document.position, key, text))
                            seen.add(key)
        if missing := [key for key in names if key not in seen]:
            raise DataError(f"no record of {path} has a text {missing[0]!r}", remedy="check --against-key")
    return items


def keys_of_files(paths: Sequence[Path], keys: Sequence[str]) -> list[tuple[str, ...]]:
    """The fields of each file.

    Raises:
        DataError: a file for which no field is left.
    """
    own = {
        path.name: tuple(key.removeprefix(f"{path.name}:") for key in keys if key.startswith(f"{path.name}:"))
        for path in paths
    }
    general = tuple(key for key in keys if not any(key.startswith(f"{name}:") for name in own))
    for path in paths:
        if not (own[path.name] or general):
            raise DataError(
                f"no field of {path} was named",
                got=f"--against-key {' '.join(keys)}",
                remedy=f"--against-key {path.name}:FIELD, or --against-key FIELD for all files",
            )
    return [own[path.name] or general for path in paths]


def _blocks(path: Path, key: str) -> Iterator[Block]:
    try:
        yield from read_blocks(path, key=key, keep_fields=True, encoding=Encoding.auto)
    except DataError as error:
        if error.remedy is None or "--json-key" not in error.remedy:
            raise
        # The flag of the documents; that of evaluation files is another one.
        raise DataError(error.what, got=error.got, expected=error.expected, remedy="--against-key COLUMN") from error


def build_index(
    items: Sequence[tuple[str, int, str, str]], grams: NgramRule
) -> tuple[EvaluationIndex, list[EvaluationItem]]:
    """The index, and all items; those that are too short have no n-gram.

    Raises:
        DataError: no item is long enough.
    """
    units, _, _ = grams.units([grams.prepared(text) for *_, text in items])
    lengths = units.lengths
    numbers = np.flatnonzero(lengths >= grams.shortest)
    if not numbers.size:
        raise DataError(
            "no item of the evaluation files is long enough",
            got=f"at most {int(lengths.max(initial=0))} units",
            expected=f"at least {grams.shortest}",
            remedy="--shortest N, or --against-key FIELD",
        )
    sizes = np.minimum(lengths[numbers], grams.size)
    counts = lengths[numbers] - sizes + 1
    owner = np.repeat(numbers, counts)
    starts = np.arange(owner.size) - np.repeat(np.cumsum(counts) - counts, counts) + units.offsets[owner]
    taken = np.repeat(sizes, counts)
    heads = range_hashes(units.values, starts, starts + grams.shortest)
    whole = range_hashes(units.values, starts, starts + taken)
    order = np.lexsort((owner, whole, heads))
    listed = [EvaluationItem(file, position, field, 0) for file, position, field, _ in items]
    for number, count in zip(numbers.tolist(), counts.tolist(), strict=True):
        file, position, field, _ = items[number]
        listed[number] = EvaluationItem(file, position, field, count)
    return EvaluationIndex(grams, heads[order], whole[order], taken[order], owner[order]), listed
