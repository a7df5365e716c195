"""Text to train tokenizers on: all of it, or a seeded random share, balanced over sources or languages."""

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from megatron_ko.data.text.documents import Document, read_documents
from megatron_ko.data.text.formats import Encoding
from megatron_ko.data.text.streams import STDIN
from megatron_ko.errors import DataError

# Random documents on which the gate and the figures of a report are computed.
_GATE_DOCUMENTS = 2000
_GATE_BYTES = 8 << 20

SOURCE = "source"


@dataclass(frozen=True)
class CorpusSampling:
    """Which part of a corpus is used.

    Attributes:
        key: text field of jsonl and parquet.
        encoding: of text inputs.
        max_bytes: of a larger corpus, a random sample of documents.
        seed: of that sample.
        balance_by: "source" (each file is a group), or a field of the documents, such as "language".
        weights: share of the bytes that each group gets; by file name (its path, where two have one) or value of the
            field.
        temperature: without weights, shares in proportion to bytes ** (1 / temperature).
    """

    key: str = "text"
    max_bytes: int = 200_000_000
    seed: int = 1234
    balance_by: str = SOURCE
    weights: Mapping[str, float] = field(default_factory=dict)
    temperature: float = 1.0
    encoding: Encoding = Encoding.utf_8


@dataclass
class Group:
    """A file, or a language: what it holds and what was taken of it, in documents and UTF-8 bytes."""

    name: str
    documents: int = 0
    bytes: int = 0
    trained_documents: int = 0
    trained_bytes: int = 0


class Corpus:
    """The input, counted once, then streamed.

    Attributes:
        groups: what is balanced, by name.
        documents, bytes, rejected: the whole input.
        trained_documents, trained_bytes: of the sample.
    """

    def __init__(self, inputs: Sequence[Path], sampling: CorpusSampling) -> None:
        if STDIN in inputs:
            remedy = "save it to a file, and give that"
            raise DataError("the standard input cannot be read several times", got="-", remedy=remedy)
        self._inputs, self._sampling = inputs, sampling
        names = [path.name for path in inputs]
        self._names = {str(path): path.name if names.count(path.name) == 1 else str(path) for path in inputs}
        self.rejected = 0
        self.groups: dict[str, Group] = {}
        for record in self._records():
            if isinstance(record, Document):
                group = self.groups.setdefault(name := self._group_of(record), Group(name))
                group.documents += 1
                group.bytes += len(record.text.encode("utf-8"))
            else:
                self.rejected += 1
        self.documents = sum(group.documents for group in self.groups.values())
        self.bytes = sum(group.bytes for group in self.groups.values())
        if not self.documents:
            raise DataError(
                "the corpus is empty",
                got=f"0 documents, {self.rejected} rejected records in {', '.join(map(str, inputs))}",
                expected="at least one document",
                remedy=f"check the files and --json-key (now {sampling.key!r})",
            )
        self._shares = sample_shares(self.groups, sampling)
        for document in self._chosen(1.0):
            group = self.groups[self._group_of(document)]
            group.trained_documents += 1
            group.trained_bytes += len(document.text.encode("utf-8"))
        self.trained_documents = sum(group.trained_documents for group in self.groups.values())
        self.trained_bytes = sum(group.trained_bytes for group in self.groups.values())

    def texts(self) -> Iterator[str]:
        """The sample, the same at every call."""
        for document in self._chosen(1.0):
            yield document.text

    def texts_by_group(self) -> dict[str, list[str]]:
        """The sample by file, or by what is balanced."""
        texts: dict[str, list[str]] = {}
        for document in self._chosen(1.0):
            texts.setdefault(self._group_of(document), []).append(document.text)
        return texts

    def samples(self) -> list[str]:
        """A few random documents for the gate, of limited size in all."""
        chosen: list[str] = []
        size = 0
        for document in self._chosen(min(1.0, _GATE_DOCUMENTS / self.trained_documents)):
            size += len(document.text.encode("utf-8"))
            if chosen and size > _GATE_BYTES:
                break
            chosen.append(document.text)
        return chosen

    def _chosen(self, part: float) -> Iterator[Document]:
        draw = random.Random(self._sampling.seed)
        for record in self._records():
            if isinstance(record, Document) and draw.random() < part * self._shares[self._group_of(record)]:
                yield record

    def _records(self) -> Iterator[object]:
        fields = self._sampling.balance_by != SOURCE
        for path in self._inputs:
            yield from read_documents(
                path, key=self._sampling.key, keep_fields=fields, encoding=self._sampling.encoding
            )

    def _group_of(self, document: Document) -> str:
        by = self._sampling.balance_by
        return self._names[document.source] if by == SOURCE else str(document.fields.get(by, f"no {by}"))


def sample_shares(groups: Mapping[str, Group], sampling: CorpusSampling) -> dict[str, float]:
    """The share of its documents that each group gives: as much as weights and ``max_bytes`` allow, none repeated.

    Raises:
        DataError: weights that name other groups, or not all.
    """
    sizes = {name: group.bytes for name, group in groups.items()}
    if sampling.weights:
        if sampling.weights.keys() != sizes.keys() or min(sampling.weights.values()) < 0:
            raise DataError(
                "weights do not fit the groups of the corpus",
                got=", ".join(f"{name}={weight:g}" for name, weight in sampling.weights.items()),
                expected=f"a weight of 0 or more for each of: {', '.join(sizes)}",
                remedy="--weights NAME=SHARE for every one of them, --balance-by says what a group is",
            )
        raw = dict(sampling.weights)
    else:
        raw = {name: size ** (1 / sampling.temperature) for name, size in sizes.items()}
    total = sum(raw.values())
    if not total > 0:
        raise DataError("all weights are 0", got=raw, expected="one above 0", remedy="--weights NAME=SHARE")
    weights = {name: value / total for name, value in raw.items()}
    taken = min([sampling.max_bytes, *(sizes[name] / weight for name, weight in weights.items() if weight)])
    return {name: min(1.0, taken * weights[name] / sizes[name]) for name in sizes}
