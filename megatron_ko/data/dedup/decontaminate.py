"""Remove documents that share an n-gram with an evaluation item; list each with the item and the shared text."""

import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TypedDict

import numpy as np
import orjson
import zstandard

from megatron_ko import __version__
from megatron_ko.data.dedup.arrays import open_arrays, write_arrays
from megatron_ko.data.dedup.clusters import disk_array
from megatron_ko.data.dedup.corpus import ChunkArrays, ReadStatistics, SourceChunk, chunk_arrays
from megatron_ko.data.dedup.evaluation import EvaluationIndex, EvaluationItem, Match, NgramRule, build_index, read_items
from megatron_ko.data.dedup.manifest import (
    DecontaminateManifest,
    DecontaminateSettings,
    EvaluationFile,
    EvaluationReport,
    Flow,
    FoundItem,
)
from megatron_ko.data.dedup.options import InputFiles, Resources, check_output
from megatron_ko.data.dedup.output import Decisions, WriteStatistics, WriteWork
from megatron_ko.data.dedup.summary import check_number, describe_inputs, describe_rejected, write_rejected
from megatron_ko.data.dedup.work_folder import (
    MANIFEST,
    REJECTED,
    REMOVED,
    PassProgress,
    WorkFolder,
    empty_folder,
    finished_before,
    locked,
    rename_output,
    work_folder_of,
    write_outputs,
    write_text,
)
from megatron_ko.data.jobs.job import Part, remove_job
from megatron_ko.data.text.documents import ParsedBlock
from megatron_ko.data.text.inputs import check_inputs, content_hash
from megatron_ko.data.text.records import Rejected
from megatron_ko.errors import DataError, conserve

FORMAT = 1
# Characters of text that are compared at once.
_BATCH = 1 << 16
_SHOWN_MATCHES = 5
_SHOWN_ITEMS = 20


@dataclass(frozen=True)
class DecontaminateOptions:
    """What to decontaminate, and against what.

    Attributes:
        input: the files.
        output: new folder.
        against: evaluation files.
        keys: their fields with text; the first one is in every record.
        grams: which n-grams a document must not share with an item.
        suffix: of the output files.
        resources: processes.
    """

    input: InputFiles
    output: Path
    against: tuple[Path, ...]
    keys: tuple[str, ...] = ("text",)
    grams: NgramRule = field(default_factory=NgramRule)
    suffix: str = ".jsonl.zst"
    resources: Resources = field(default_factory=Resources)

    def settings(self) -> DecontaminateSettings:
        """The options that decide the result."""
        return {
            "key": self.input.key,
            "text_unit": self.input.text_unit,
            "format": self.input.format,
            "encoding": self.input.encoding.value,
            "against": {str(path): content_hash(path) if path.is_file() else None for path in self.against},
            "against_keys": list(self.keys),
            "unit": self.grams.unit,
            "size": self.grams.size,
            "shortest": self.grams.shortest,
            "suffix": self.suffix,
        }

    def check(self) -> None:
        """Refuse what cannot work, before anything is read.

        Raises:
            DataError: which option, or which file.
        """
        if not 1 <= self.grams.shortest <= self.grams.size:
            raise DataError(
                "the shortest item cannot be longer than an n-gram",
                got=f"--shortest {self.grams.shortest}, --ngram {self.grams.size}",
                expected="1 <= shortest <= ngram",
            )
        check_output(self.output, self.suffix)
        self.input.check()
        check_inputs(self.against)


def decontaminate(options: DecontaminateOptions, progress: PassProgress = lambda *_: None) -> DecontaminateManifest:
    """Write a new folder: one file a source, manifest.json, removed.jsonl.zst, and rejected.jsonl if any.

    Returns:
        the manifest.

    Raises:
        DataError: bad options or input, no document, no usable item, an existing output, a full disk, a dead worker.
    """
    folder = work_folder_of(options.output)
    if finished_before(folder, options.output, options.settings()):
        remove_job(folder)
        before: DecontaminateManifest = json.loads((options.output / MANIFEST).read_text("utf-8"))
        return before
    options.check()
    index, items = build_index(read_items(options.against, options.keys), options.grams)
    with locked(folder, options.output):
        place = WorkFolder(folder, options.input, options.settings(), options.resources, progress)
        matched = place.over_corpus("match", MatchWork(options.input.key, index, items))
        parts = chunk_arrays(matched, [part.statistics["documents"] for part in matched])
        check_number(parts, matched, options.input, folder)
        decisions = Decisions(parts, same_text=place.array("none"), kept=place.array("kept"))
        _mark_kept(decisions.kept, parts)
        written = place.over_written("write", WriteWork(options.input, decisions, frozenset()), options.suffix)
        manifest = _assemble(options, place, _Passes(matched, written), items)
    remove_job(folder)
    return manifest


class MatchStatistics(ReadStatistics):
    """What is recorded of a chunk: also the documents that share n-grams, and the bytes of their texts."""

    removed: int
    removed_bytes: int


class MatchEntry(TypedDict):
    """An evaluation item that a document shares n-grams with: how many, of how many, and the text of one of them."""

    file: str
    position: int
    field: str
    shared_ngrams: int
    of: int
    text: str


class Contamination(TypedDict):
    """The items that a document shares n-grams with: how many, and those it shares most with."""

    items: int
    matches: list[MatchEntry]


class MatchWork:
    """Writes "gone" [g], the documents of one chunk that share n-grams, "lines" about them, "hits" [h, 2]: (item,
    documents), and "rejected".
    """

    def __init__(self, key: str, index: EvaluationIndex, items: Sequence[EvaluationItem]) -> None:
        self._key, self._index, self._items = key, index, list(items)

    def __call__(self, chunk: SourceChunk, part: Path) -> MatchStatistics:
        gone: list[int] = []
        lines: list[bytes] = []
        hits: Counter[int] = Counter()
        rejected: list[Rejected] = []
        documents = size = gone_size = 0
        for parsed in chunk.parsed(self._key):
            rejected += parsed.rejected
            sizes = [len(text.encode("utf-8")) for text in parsed.texts]
            for row, matches in sorted(self._matches(parsed).items()):
                gone.append(documents + row)
                gone_size += sizes[row]
                hits.update({match.item for match, _ in matches})
                lines.append(orjson.dumps({"position": parsed.positions[row], **self._described(matches)}) + b"\n")
            documents += len(sizes)
            size += sum(sizes)
        arrays: dict[str, np.ndarray] = {
            "gone": np.array(gone, np.int64),
            "lines": np.frombuffer(b"".join(lines), np.uint8),
            "hits": np.array(sorted(hits.items()), np.int64).reshape(-1, 2),
            "rejected": np.frombuffer(b"".join(orjson.dumps(asdict(one)) + b"\n" for one in rejected), np.uint8),
        }
        write_arrays(part, arrays)
        return {
            "source": chunk.source,
            "documents": documents,
            "bytes": size,
            "removed": len(gone),
            "removed_bytes": gone_size,
            "rejected": dict(Counter(record.reason.split(":")[0] for record in rejected)),
            "read": chunk.chunk.read,
        }

    def _matches(self, parsed: ParsedBlock) -> dict[int, list[tuple[Match, str]]]:
        """By document of the block: its matches, and the text of each."""
        found: dict[int, list[tuple[Match, str]]] = defaultdict(list)
        prepared = [self._index.grams.prepared(text) for text in parsed.texts]
        first = 0
        while first < len(prepared):
            last, held_characters = first, 0
            while last < len(prepared) and (last == first or held_characters < _BATCH):
                held_characters += len(prepared[last])
                last += 1
            for match in self._index.find(prepared[first:last]):
                row = first + match.row
                found[row].append((match, prepared[row][match.begin : match.end]))
            first = last
        return found

    def _described(self, matches: Sequence[tuple[Match, str]]) -> Contamination:
        grams: dict[int, dict[int, str]] = defaultdict(dict)
        for match, text in matches:
            grams[match.item].setdefault(match.gram, text)
        most = sorted(grams, key=lambda item: (-len(grams[item]), item))
        described: list[MatchEntry] = []
        for number in most[:_SHOWN_MATCHES]:
            item, shared = self._items[number], grams[number]
            described.append(
                {
                    "file": item.file,
                    "position": item.position,
                    "field": item.field,
                    "shared_ngrams": len(shared),
                    "of": item.grams,
                    "text": next(iter(shared.values())),
                }
            )
        return {"items": len(grams), "matches": described}


def _mark_kept(path: Path, parts: ChunkArrays) -> None:
    kept = disk_array(path, parts.total, "<i8")
    for chunk, (first, last) in enumerate(zip(parts.firsts[:-1], parts.firsts[1:], strict=True)):
        kept[first:last] = np.arange(first, last)
        kept[parts[chunk]["gone"] + first] = -1


@dataclass(frozen=True)
class _Passes:
    """The parts of both passes over the corpus."""

    matched: list[Part[MatchStatistics]]
    written: list[Part[WriteStatistics]]


def _assemble(
    options: DecontaminateOptions, place: WorkFolder, passes: _Passes, items: Sequence[EvaluationItem]
) -> DecontaminateManifest:
    matched, written = passes.matched, passes.written
    folder = empty_folder(place.folder / "output")
    outputs = write_outputs(folder, options.input, written, options.suffix)
    _write_removed(folder / REMOVED, options, matched)
    write_rejected(folder / REJECTED, matched)
    documents: Flow = {
        "in": sum(part.statistics["documents"] for part in matched),
        "out": sum(part.statistics["documents"] for part in written),
        "removed": {"contaminated": sum(part.statistics["removed"] for part in matched)},
    }
    sizes: Flow = {
        "in": sum(part.statistics["bytes"] for part in matched),
        "out": sum(part.statistics["bytes"] for part in written),
        "removed": {"contaminated": sum(part.statistics["removed_bytes"] for part in matched)},
    }
    for unit, flow in (("documents", documents), ("bytes", sizes)):
        conserve(unit, flow["in"], flow["out"] + flow["removed"]["contaminated"])
    manifest: DecontaminateManifest = {
        "format": FORMAT,
        "created_by": f"megatron_ko {__version__}",
        "options": options.settings(),
        "inputs": describe_inputs(options.input, options.input.written, matched),
        "outputs": outputs,
        "documents": documents,
        "bytes_of_text": sizes,
        "rejected": describe_rejected(matched),
        "evaluation": _evaluation(options, matched, items),
    }
    write_text(folder / MANIFEST, json.dumps(manifest, ensure_ascii=False, indent=2) + "\n")
    rename_output(folder, options.output)
    return manifest


def _write_removed(path: Path, options: DecontaminateOptions, matched: Sequence[Part[MatchStatistics]]) -> None:
    with path.open("wb") as stream, zstandard.ZstdCompressor(level=3).stream_writer(stream) as lines:
        for part in matched:
            source = str(options.input.paths[part.statistics["source"]])
            for line in open_arrays(part.path)["lines"].tobytes().splitlines():
                lines.write(orjson.dumps({"source": source, **orjson.loads(line)}) + b"\n")


def _evaluation(
    options: DecontaminateOptions, matched: Sequence[Part[MatchStatistics]], items: Sequence[EvaluationItem]
) -> EvaluationReport:
    hits: Counter[int] = Counter()
    for part in matched:
        hits.update({int(item): int(number) for item, number in open_arrays(part.path)["hits"]})
    files: list[EvaluationFile] = []
    for path in map(str, options.against):
        mine = [number for number, item in enumerate(items) if item.file == path]
        searched = [number for number in mine if items[number].grams]
        files.append(
            {
                "file": path,
                "items": len(mine),
                "too_short": len(mine) - len(searched),
                "found": sum(number in hits for number in searched),
            }
        )
    most = sorted(hits.items(), key=lambda entry: (-entry[1], entry[0]))[:_SHOWN_ITEMS]
    return {
        "files": files,
        "most_found": [_found(items[number], documents) for number, documents in most],
    }


def _found(item: EvaluationItem, documents: int) -> FoundItem:
    return {
        "file": item.file,
        "position": item.position,
        "field": item.field,
        "grams": item.grams,
        "documents": documents,
    }
