"""What a pipeline did, by stage and reason: counts that add up, and a few samples of everything; mergeable."""

import heapq
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TypedDict

import xxhash

from megatron_ko.data.clean.personal import redacted
from megatron_ko.errors import conserve

# Samples of every reason that are kept.
SAMPLES = 5
_EXCERPT = 600
_AROUND = 100


class AmountJson(TypedDict):
    """An ``Amount`` as JSON."""

    documents: int
    characters: int
    bytes: int


class StageTallyJson(TypedDict):
    """A ``StageTally`` as JSON."""

    dropped: dict[str, AmountJson]
    changed: dict[str, int]
    occurrences: dict[str, int]
    before: AmountJson
    after: AmountJson


class DroppedSample(TypedDict):
    """A document that a stage dropped, and the beginning of its text."""

    source: str
    position: int
    text: str


class ChangedSample(TypedDict):
    """A document that a stage changed, and both texts around the first difference."""

    source: str
    position: int
    before: str
    after: str


DocumentSample = DroppedSample | ChangedSample


class TallyJson(TypedDict):
    """A ``Tally`` as JSON; samples are (stage, verb, reason, hash of the origin, sample)."""

    taken: AmountJson
    kept: AmountJson
    rejected: dict[str, int]
    notes: dict[str, dict[str, int]]
    stages: dict[str, StageTallyJson]
    samples: list[tuple[str, str, str, int, DocumentSample]]


@dataclass
class Amount:
    """Documents, and the code points and UTF-8 bytes of their texts."""

    documents: int = 0
    characters: int = 0
    bytes: int = 0

    def add(self, text: str, documents: int = 1) -> None:
        """Count one text in."""
        self.documents += documents
        self.characters += len(text)
        self.bytes += len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))

    def to_json(self) -> AmountJson:
        """As JSON values."""
        return {"documents": self.documents, "characters": self.characters, "bytes": self.bytes}

    def plus(self, other: "Amount", sign: int = 1) -> "Amount":
        """The sum, or the difference."""
        return Amount(
            self.documents + sign * other.documents,
            self.characters + sign * other.characters,
            self.bytes + sign * other.bytes,
        )


@dataclass
class StageTally:
    """What one stage did.

    Attributes:
        dropped: by reason.
        changed: documents by reason; a document can have several.
        occurrences: how often each reason applied.
        before, after: texts that it changed, as they came and as they went on.
    """

    dropped: dict[str, Amount] = field(default_factory=dict)
    changed: Counter[str] = field(default_factory=Counter)
    occurrences: Counter[str] = field(default_factory=Counter)
    before: Amount = field(default_factory=Amount)
    after: Amount = field(default_factory=Amount)

    def to_json(self) -> StageTallyJson:
        """As JSON values; ``from_json`` reads them."""
        return {
            "dropped": {reason: amount.to_json() for reason, amount in sorted(self.dropped.items())},
            "changed": _sorted(self.changed),
            "occurrences": _sorted(self.occurrences),
            "before": self.before.to_json(),
            "after": self.after.to_json(),
        }

    @classmethod
    def from_json(cls, value: StageTallyJson) -> "StageTally":
        """The tally that gave ``value``."""
        return cls(
            {reason: Amount(**amount) for reason, amount in value["dropped"].items()},
            Counter(value["changed"]),
            Counter(value["occurrences"]),
            Amount(**value["before"]),
            Amount(**value["after"]),
        )


class SampleDocuments:
    """A few documents for each reason: those with the smallest hashes of their origin.

    So they are spread over the corpus, and the same for any number of workers.
    """

    def __init__(self) -> None:
        # By (stage, verb, reason): a heap of (-hash, sample).
        self.heaps: dict[tuple[str, str, str], list[tuple[int, DocumentSample]]] = {}

    def wants(self, key: tuple[str, str, str], digest: int) -> bool:
        """Whether a document with this hash would be kept."""
        heap = self.heaps.get(key, [])
        return len(heap) < SAMPLES or -digest > heap[0][0]

    def add(self, key: tuple[str, str, str], digest: int, sample: DocumentSample) -> None:
        """Keep a sample, and forget the largest hash where there are too many."""
        if not self.wants(key, digest):
            return
        heap = self.heaps.setdefault(key, [])
        if any(known == -digest for known, _ in heap):
            return
        (heapq.heappushpop if len(heap) == SAMPLES else heapq.heappush)(heap, (-digest, sample))

    def items(self) -> Iterable[tuple[tuple[str, str, str], list[DocumentSample]]]:
        """All samples by key, smallest hash first."""
        for key in sorted(self.heaps):
            yield key, [sample for _, sample in sorted(self.heaps[key], key=lambda entry: -entry[0])]


class Tally:
    """Counts of one pipeline over any number of documents.

    Args:
        names: of the stages in order.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self.stages = {name: StageTally() for name in names}
        self.taken = Amount()
        self.kept = Amount()
        self.rejected: Counter[str] = Counter()
        self.notes: dict[str, Counter[str]] = {}
        self.samples = SampleDocuments()

    def drop(self, stage: str, reason: str, text: str, origin: tuple[str, int]) -> None:
        """A document ended at ``stage``; ``text`` as the stage saw it."""
        self.stages[stage].dropped.setdefault(reason, Amount()).add(text)
        key, digest = (stage, "dropped", reason), _digest(origin)
        if self.samples.wants(key, digest):
            shown = redacted(text)[:_EXCERPT]
            self.samples.add(key, digest, {"source": origin[0], "position": origin[1], "text": shown})

    def change(self, stage: str, counts: Mapping[str, int], texts: tuple[str, str], origin: tuple[str, int]) -> None:
        """A stage turned the first text into the second."""
        tally = self.stages[stage]
        tally.before.add(texts[0])
        tally.after.add(texts[1])
        digest = _digest(origin)
        for reason, number in counts.items():
            tally.changed[reason] += 1
            tally.occurrences[reason] += number
            key = (stage, "changed", reason)
            if self.samples.wants(key, digest):
                before, after = _difference(*texts)
                sample = ChangedSample(source=origin[0], position=origin[1], before=before, after=after)
                self.samples.add(key, digest, sample)

    def note(self, fields: Mapping[str, object]) -> None:
        """A stage added fields; texts are counted by value."""
        for name, value in fields.items():
            if isinstance(value, str):
                self.notes.setdefault(name, Counter())[value] += 1

    def merge(self, other: "Tally") -> None:
        """Add what another tally of the same pipeline counted."""
        self.taken, self.kept = self.taken.plus(other.taken), self.kept.plus(other.kept)
        self.rejected.update(other.rejected)
        for name, counts in other.notes.items():
            self.notes.setdefault(name, Counter()).update(counts)
        for name, theirs in other.stages.items():
            mine = self.stages[name]
            mine.before, mine.after = mine.before.plus(theirs.before), mine.after.plus(theirs.after)
            mine.changed.update(theirs.changed)
            mine.occurrences.update(theirs.occurrences)
            for reason, amount in theirs.dropped.items():
                mine.dropped[reason] = mine.dropped.get(reason, Amount()).plus(amount)
        for key, heap in other.samples.heaps.items():
            for negative, sample in heap:
                self.samples.add(key, -negative, sample)

    def check(self) -> None:
        """Check that nothing is lost: what came in went out, was dropped, or was taken away by changes.

        Raises:
            LostError: the counts contradict each other.
        """
        conserve("documents, bytes", self.left()[-1], self.kept)

    def left(self) -> list[Amount]:
        """What came in, and what was left after every stage."""
        left = [self.taken]
        for stage in self.stages.values():
            now = left[-1].plus(stage.before, -1).plus(stage.after)
            for amount in stage.dropped.values():
                now = now.plus(amount, -1)
            left.append(now)
        return left

    def to_json(self) -> TallyJson:
        """As JSON values; ``from_json`` reads them."""
        return {
            "taken": self.taken.to_json(),
            "kept": self.kept.to_json(),
            "rejected": _sorted(self.rejected),
            "notes": {name: _sorted(counts) for name, counts in sorted(self.notes.items())},
            "stages": {name: stage.to_json() for name, stage in self.stages.items()},
            "samples": [
                (*key, digest, sample)
                for key, heap in sorted(self.samples.heaps.items())
                for digest, sample in sorted(
                    ((-negative, sample) for negative, sample in heap), key=lambda entry: entry[0]
                )
            ],
        }

    @classmethod
    def merged(cls, values: Iterable[TallyJson]) -> "Tally":
        """The sum of tallies of one pipeline, as JSON values; at least one."""
        tallies = map(cls.from_json, values)
        total = next(tallies)
        for tally in tallies:
            total.merge(tally)
        return total

    @classmethod
    def from_json(cls, value: TallyJson) -> "Tally":
        """The tally that gave ``value``."""
        tally = cls(value["stages"])
        tally.taken, tally.kept = Amount(**value["taken"]), Amount(**value["kept"])
        tally.rejected = Counter(value["rejected"])
        tally.notes = {name: Counter(counts) for name, counts in value["notes"].items()}
        tally.stages = {name: StageTally.from_json(stage) for name, stage in value["stages"].items()}
        for stage, verb, reason, digest, sample in value["samples"]:
            tally.samples.add((stage, verb, reason), digest, sample)
        return tally


def _sorted(counts: Mapping[str, int]) -> dict[str, int]:
    return dict(sorted(counts.items()))


def _digest(origin: tuple[str, int]) -> int:
    return xxhash.xxh3_64_intdigest(f"{origin[0]}\0{origin[1]}".encode("utf-8", "surrogatepass"))


def _difference(before: str, after: str) -> tuple[str, str]:
    """Both texts around the first place where they differ, without personal data."""
    before, after = redacted(before), redacted(after)
    shorter = min(len(before), len(after))
    start = next((i for i in range(shorter) if before[i] != after[i]), shorter)
    first = max(0, start - _AROUND)
    return before[first : start + _AROUND], after[first : start + _AROUND]
