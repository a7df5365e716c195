"""From the parts of all ranks to the output: shards by streaming, manifest, report, samples, plot; then one rename."""

import hashlib
import json
import os
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypedDict

import orjson

from megatron_ko import __version__
from megatron_ko.data.clean.chunk import CleanStatistics, part_rejected_path
from megatron_ko.data.clean.plots import retention_png
from megatron_ko.data.clean.report import CleanReport, report_of
from megatron_ko.data.clean.tally import Tally
from megatron_ko.data.jobs.chunks import InputIdentity, check_unchanged, identified_paths
from megatron_ko.data.jobs.job import Part, job_parts, remove_job
from megatron_ko.data.text.inputs import content_hash, input_bytes
from megatron_ko.data.text.writers import merge_documents
from megatron_ko.errors import DataError
from megatron_ko.storage.files import sync_folder
from megatron_ko.storage.open_json import JsonObject

_MANIFEST, _REPORT = "manifest.json", "report.json"


@dataclass(frozen=True)
class CleanIdentity:
    """What decides every byte of a cleaned output; ``finish`` knows no other options.

    Attributes:
        inputs: the files, with their sizes and hashes.
        chunk_bytes: how much text goes into one part.
        pipeline: words, stages and their options.
        key, text_unit: how the inputs are read.
        format: of the shards.
        shard_bytes: a shard is closed when it has at least this many bytes.
        input_format: of all inputs; None: as their suffixes say.
        encoding: of text inputs.
    """

    inputs: InputIdentity
    chunk_bytes: int
    pipeline: JsonObject
    key: str
    text_unit: str
    format: str
    shard_bytes: int
    input_format: str | None = None
    encoding: str = "utf-8"


class ShardEntry(TypedDict):
    """A file of documents in manifest.json."""

    name: str
    documents: int
    bytes: int
    sha256: str


class SourceEntry(TypedDict):
    """An input in manifest.json, and what became of its documents."""

    path: str
    bytes: int
    xxh3_128: str
    taken: int
    kept: int
    rejected: int


class CleanManifest(TypedDict):
    """The content of manifest.json."""

    format: int
    created_by: str
    documents: int
    characters: int
    bytes: int
    key: str
    pipeline: JsonObject
    shards: list[ShardEntry]
    sources: list[SourceEntry]


def finish(folder: Path, output: Path, identity: CleanIdentity) -> CleanReport:
    """Write the output of a job, all ranks of which have ended, and remove the job.

    Args:
        folder: of the job.
        output: folder that appears.
        identity: of the job.

    Returns:
        the report.

    Raises:
        DataError: nothing to clean, a part or an input was changed, a full disk.
    """
    parts: list[Part[CleanStatistics]] = job_parts(folder)
    check_unchanged(identity.inputs, folder)
    tally = Tally.merged(part.statistics["tally"] for part in parts) if parts else Tally([])
    tally.check()
    if not tally.taken.documents:
        remove_job(folder)
        raise _nothing(tally, identity.key)
    new = folder / "output"
    new.mkdir(exist_ok=True)
    shards = _shards(parts, new, identity.format, identity.shard_bytes)
    _rejected(parts, new / "rejected.jsonl")
    _samples(tally, new / "samples")
    report = report_of(tally)
    retention_png(report, new / "retention.png")
    _write_json(new / _REPORT, report)
    _write_json(new / _MANIFEST, _manifest(identity, parts, shards, tally))
    for path in [*new.rglob("*"), new]:
        if path.is_dir():
            sync_folder(path)
    os.rename(new, output)
    sync_folder(output.parent)
    remove_job(folder)
    return report


def finished_report(output: Path) -> CleanReport | None:
    """The report in a finished output, or None."""
    path = output / _REPORT
    if not path.is_file() or not (output / _MANIFEST).is_file():
        return None
    report: CleanReport = json.loads(path.read_text(encoding="utf-8"))
    return report


def _shards(parts: Sequence[Part[CleanStatistics]], folder: Path, suffix: str, least: int) -> list[ShardEntry]:
    """Join parts into files of at least ``least`` bytes, except the last one; what a killed run wrote is kept."""
    groups: list[list[Part[CleanStatistics]]] = [[]]
    for part in parts:
        if sum(other.path.stat().st_size for other in groups[-1]) >= least:
            groups.append([])
        groups[-1].append(part)
    shards: list[ShardEntry] = []
    for number, group in enumerate(groups):
        path = folder / f"clean-{number:05d}.{suffix}"
        if not path.exists():
            merge_documents([part.path for part in group], path)
        documents = sum(part.statistics["tally"]["kept"]["documents"] for part in group)
        shards.append(
            {"name": path.name, "documents": documents, "bytes": path.stat().st_size, "sha256": _sha256(path)}
        )
    return shards


def _rejected(parts: Sequence[Part[CleanStatistics]], path: Path) -> None:
    """Join the rejected records of all parts; no file if there are none."""
    with path.open("wb") as stream:
        for part in parts:
            beside, recorded = part_rejected_path(part.path), part.statistics["rejected"]
            content = beside.read_bytes() if beside.is_file() else None
            if content is None or len(content) != recorded["bytes"] or content_hash(beside) != recorded["xxh3_128"]:
                raise DataError(
                    f"{beside} was changed or damaged", remedy=f"remove {part.path}, and run the command again"
                )
            stream.write(content)
        _synced(stream)
    if not path.stat().st_size:
        path.unlink()


def _samples(tally: Tally, folder: Path) -> None:
    """A file of every (stage, verb, reason)."""
    folder.mkdir(exist_ok=True)
    for (stage, verb, reason), samples in tally.samples.items():
        name = "".join(letter if letter.isalnum() or letter in "_-" else "_" for letter in reason)
        with (folder / f"{stage}.{verb}.{name}.jsonl").open("wb") as stream:
            for sample in samples:
                stream.write(orjson.dumps({"stage": stage, verb: reason, **sample}) + b"\n")
            _synced(stream)


def _manifest(
    identity: CleanIdentity, parts: Sequence[Part[CleanStatistics]], shards: list[ShardEntry], tally: Tally
) -> CleanManifest:
    counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for part in parts:
        for source, (taken, kept, rejected) in part.statistics["sources"].items():
            counts[source].update(taken=taken, kept=kept, rejected=rejected)
    return {
        "format": 1,
        "created_by": f"megatron_ko {__version__}",
        "documents": tally.kept.documents,
        "characters": tally.kept.characters,
        "bytes": tally.kept.bytes,
        "key": identity.key,
        "pipeline": identity.pipeline,
        "shards": shards,
        "sources": [
            {
                "path": str(path),
                "bytes": input_bytes(path),
                "xxh3_128": content_hash(path),
                "taken": counts[str(path)]["taken"],
                "kept": counts[str(path)]["kept"],
                "rejected": counts[str(path)]["rejected"],
            }
            for path in identified_paths(identity.inputs)
        ],
    }


def _nothing(tally: Tally, key: str) -> DataError:
    return DataError(
        "there is nothing to clean: no document was found",
        got=f"{tally.rejected.total()} rejected records {dict(tally.rejected)}",
        expected="at least one document",
        remedy=f"check the files and --json-key (now {key!r})",
    )


def _write_json(path: Path, value: object) -> None:
    with path.open("wb") as stream:
        stream.write((json.dumps(value, ensure_ascii=False, indent=2) + "\n").encode("utf-8"))
        _synced(stream)


def _synced(stream: BinaryIO) -> None:
    stream.flush()
    os.fsync(stream.fileno())


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
