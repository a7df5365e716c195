"""Deduplication from end to end: hash and sketch, join, verify, cluster, cut pieces, write."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from megatron_ko import __version__
from megatron_ko.data.dedup.clusters import Order, choose_best, choose_kept, near_clusters, same_text_clusters
from megatron_ko.data.dedup.corpus import ChunkArrays, chunk_arrays
from megatron_ko.data.dedup.join import CandidateJoin, ExactJoin, key_ranges
from megatron_ko.data.dedup.manifest import DedupManifest, DedupReport, Flow, NearCounts, NearReport
from megatron_ko.data.dedup.options import LEVELS, DedupOptions, Near
from megatron_ko.data.dedup.output import (
    Decisions,
    RemovedStatistics,
    RemovedWork,
    WriteStatistics,
    WriteWork,
    existing_excerpts,
)
from megatron_ko.data.dedup.pieces import DecidedLevel, PieceSplitter, PiecesWork, mark_pieces
from megatron_ko.data.dedup.report import describe_clusters, show_clusters, source_pairs
from megatron_ko.data.dedup.settle import SettleStatistics, SettleWork
from megatron_ko.data.dedup.sign import SignStatistics, SignWork
from megatron_ko.data.dedup.summary import check_number, describe_inputs, describe_rejected, write_rejected
from megatron_ko.data.dedup.verify import VerifyWork, document_ranges
from megatron_ko.data.dedup.work_folder import (
    MANIFEST,
    REJECTED,
    REMOVED,
    REPORT,
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
from megatron_ko.data.text.writers import merge_documents
from megatron_ko.errors import conserve

FORMAT = 1


@dataclass(frozen=True)
class DedupResult:
    """The two files that tell what was done: manifest.json and report.json."""

    manifest: DedupManifest
    report: DedupReport


def dedup(options: DedupOptions, progress: PassProgress = lambda *_: None) -> DedupResult:
    """Write a new folder: one file a source, manifest.json, report.json, removed.jsonl.zst, and rejected.jsonl if any.

    What was done is kept in OUTPUT.parts until the end; after a kill the same command goes on from there.

    Raises:
        DataError: bad options or input, no document, an existing output, a full disk, a dead worker.
    """
    folder = work_folder_of(options.output)
    if finished_before(folder, options.output, options.settings()):
        remove_job(folder)
        return DedupResult(*(json.loads((options.output / name).read_text("utf-8")) for name in (MANIFEST, REPORT)))
    options.check()
    with locked(folder, options.output):
        place = WorkFolder(folder, options.input, options.settings(), options.resources, progress)
        result = _Dedup(options, place).run()
    remove_job(folder)
    return result


class _Dedup:
    """The passes, in order; each leaves what the next one needs."""

    def __init__(self, options: DedupOptions, place: WorkFolder) -> None:
        self._options, self._place = options, place
        self._near_counts: NearCounts | None = None

    def run(self) -> DedupResult:
        options, place = self._options, self._place
        work = SignWork(options.input.key, options.normalisation, options.near)
        signed = place.over_corpus("sign", work)
        parts = chunk_arrays(signed, [part.statistics["documents"] for part in signed])
        check_number(parts, signed, options.input, place.folder)
        decisions = Decisions(parts, place.array("same_text"), place.array("kept"))
        self._decide_documents(decisions, signed)
        for level in LEVELS[1:]:
            if level in options.levels:
                decisions = self._decide_pieces(decisions, level)
        clusters = describe_clusters(decisions.kept, decisions.same_text, place.array("sizes"))
        first_chunk = parts.chunks_before(options.input.existing)
        writing = WriteWork(options.input, decisions, clusters.shown())
        written = place.over_written("write", writing, options.suffix, first_chunk)
        removed = place.over_units(
            "removed",
            ((chunk, chunk) for chunk in range(first_chunk, len(parts))),
            RemovedWork(decisions, options.input.paths, options.near is not None),
            ".jsonl.zst",
        )
        paths = options.input.paths
        excerpts = existing_excerpts(options.input, parts, clusters.shown())
        for part in written:
            excerpts |= part.statistics["excerpts"]
        report: DedupReport = {
            "source_pairs": source_pairs(removed, paths),
            "clusters": {
                "number": clusters.number,
                "documents": clusters.documents,
                "sizes": clusters.histogram,
                "largest": show_clusters(clusters.largest, parts, excerpts, paths),
                "most_varied": show_clusters(clusters.most_varied, parts, excerpts, paths),
            },
            "near": self._near_report(removed),
        }
        return self._assemble(signed, written, removed, report)

    def _decide_documents(self, decisions: Decisions, signed: Sequence[Part[SignStatistics]]) -> None:
        options, place, parts = self._options, self._place, decisions.documents
        distinct = sum(part.statistics["distinct"] for part in signed)
        memory = place.resources.memory
        joined = place.over_units("exact", key_ranges(distinct, memory), ExactJoin(parts))
        same_text_clusters(decisions.same_text, parts, [part.path for part in joined])
        best = place.array("best")
        choose_best(best, decisions.same_text, parts, self._order(parts))
        settled = [] if options.near is None else self._near(options.near, decisions, best, distinct)
        existing = parts.items_before(options.input.existing)
        choose_kept(decisions.kept, decisions.same_text, best, [part.path for part in settled], existing)

    def _order(self, parts: ChunkArrays) -> Order:
        return Order(self._options.keep, parts.items_before(self._options.input.existing))

    def _near(self, near: Near, decisions: Decisions, best: Path, distinct: int) -> list[Part[SettleStatistics]]:
        place, parts, memory = self._place, decisions.documents, self._place.resources.memory
        units = key_ranges(distinct, memory, near.bands.bands)
        order = self._order(parts)
        found = place.over_units("candidates", units, CandidateJoin(parts, decisions.same_text, order.existing))
        pairs = sum(part.statistics["pairs"] for part in found)
        verify = VerifyWork(parts, [part.path for part in found], near.threshold)
        verified = place.over_units("verify", document_ranges(parts.total, pairs, memory), verify)
        paths = [part.path for part in verified]
        clusters = place.array("clusters")
        near_clusters(clusters, parts.total, paths)
        pairs = sum(part.statistics["pairs"] for part in verified)
        settle = SettleWork(parts, paths, (clusters, best), order, near.threshold)
        settled = place.over_units("settle", document_ranges(parts.total, pairs, memory), settle)
        self._near_counts = {
            "compared_pairs": sum(part.statistics["compared"] for part in verified),
            "similar_pairs": pairs,
            "documents_in_crowded_buckets": sum(part.statistics["crowded"] for part in found),
            "connected_clusters": sum(part.statistics["clusters"] for part in settled),
            "documents_kept_in_them": sum(part.statistics["kept"] for part in settled),
        }
        return settled

    def _decide_pieces(self, decisions: Decisions, level: str) -> Decisions:
        options, place = self._options, self._place
        splitter = PieceSplitter(level, options.normalisation, options.least_characters)
        work = PiecesWork(options.input.key, splitter, decisions.kept, decisions.documents, decisions.levels)
        hashed = place.over_corpus(f"{level}s", work)
        parts = chunk_arrays(hashed, [part.statistics["pieces"] for part in hashed])
        joined = place.over_units(f"{level}s-join", key_ranges(parts.total, place.resources.memory), ExactJoin(parts))
        marks = place.array(level)
        mark_pieces(marks, parts, [part.path for part in joined], parts.items_before(options.input.existing))
        levels = (*decisions.levels, DecidedLevel(splitter, parts.firsts, marks))
        return Decisions(decisions.documents, decisions.same_text, decisions.kept, levels)

    def _near_report(self, removed: Sequence[Part[RemovedStatistics]]) -> NearReport | None:
        near = self._options.near
        if near is None or self._near_counts is None:
            return None
        tenths = [0] * 10
        for part in removed:
            tenths = [one + two for one, two in zip(tenths, part.statistics["similarity_tenths"], strict=True)]
        similarity = {f"{place / 10:.1f}-{(place + 1) / 10:.1f}": number for place, number in enumerate(tenths)}
        probability = {
            f"{similarity:.2f}": round(near.bands.candidate_probability(similarity), 4)
            for similarity in (near.threshold, 0.5, 0.6, 0.7, 0.8, 0.9)
        }
        return {
            **self._near_counts,
            "chance_of_being_compared_by_similarity": probability,
            "removed_by_similarity_to_the_kept_document": similarity,
        }

    def _assemble(
        self,
        signed: Sequence[Part[SignStatistics]],
        written: Sequence[Part[WriteStatistics]],
        removed: Sequence[Part[RemovedStatistics]],
        report: DedupReport,
    ) -> DedupResult:
        options = self._options
        folder = empty_folder(self._place.folder / "output")
        outputs = write_outputs(folder, options.input, written, options.suffix)
        merge_documents([part.path for part in removed], folder / REMOVED)
        mine = [part for part in signed if part.statistics["source"] in options.input.written]
        write_rejected(folder / REJECTED, mine)
        kept = _conserve(mine, written, removed)
        manifest: DedupManifest = {
            "format": FORMAT,
            "created_by": f"megatron_ko {__version__}",
            "options": options.settings(),
            "inputs": describe_inputs(options.input, options.input.written, mine),
            "outputs": outputs,
            "documents": kept.documents,
            "bytes_of_text": kept.bytes,
            "pieces_removed": kept.pieces,
            "rejected": describe_rejected(mine),
        }
        if options.input.existing:
            manifest["against"] = {
                "inputs": describe_inputs(options.input, range(options.input.existing), signed),
                "removed": _removed_for(options.input.existing, removed),
            }
        write_text(folder / REPORT, json.dumps(report, ensure_ascii=False, indent=2) + "\n")
        write_text(folder / MANIFEST, json.dumps(manifest, ensure_ascii=False, indent=2) + "\n")
        rename_output(folder, options.output)
        return DedupResult(manifest, report)


def _removed_for(existing: int, removed: Sequence[Part[RemovedStatistics]]) -> dict[str, int]:
    """Documents that were removed because one of the first ``existing`` sources has them, by reason."""
    found = Counter({"exact": 0, "near": 0})
    for part in removed:
        for _, kept_in, reason, number, _ in part.statistics["pairs"]:
            found[reason] += number if kept_in < existing else 0
    return dict(found)


@dataclass(frozen=True)
class _Conserved:
    """Documents and bytes that came in, went out and were removed; and the pieces removed, by level."""

    documents: Flow
    bytes: Flow
    pieces: dict[str, int]


def _conserve(
    signed: Sequence[Part[SignStatistics]],
    written: Sequence[Part[WriteStatistics]],
    removed: Sequence[Part[RemovedStatistics]],
) -> _Conserved:
    """Add up what the passes counted, and check that all that came in went out or was removed."""
    documents: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    for listed in removed:
        for _, _, reason, number, size in listed.statistics["pairs"]:
            documents[reason] += number
            sizes[reason] += size
    pieces: Counter[str] = Counter()
    for part in written:
        documents["nothing_left"] += part.statistics["emptied"]
        sizes["nothing_left"] += part.statistics["emptied_bytes"]
        pieces.update(part.statistics["pieces"])
        sizes.update({f"{level}s": size for level, size in part.statistics["pieces_bytes"].items()})
    total = sum(part.statistics["documents"] for part in signed)
    total_bytes = sum(part.statistics["bytes"] for part in signed)
    out = sum(part.statistics["documents"] for part in written)
    out_bytes = sum(part.statistics["bytes"] for part in written)
    conserve("documents", total, out + documents.total())
    conserve("bytes", total_bytes, out_bytes + sizes.total())
    return _Conserved(
        documents={"in": total, "out": out, "removed": dict(sorted(documents.items()))},
        bytes={"in": total_bytes, "out": out_bytes, "removed": dict(sorted(sizes.items()))},
        pieces=dict(sorted(pieces.items())),
    )
