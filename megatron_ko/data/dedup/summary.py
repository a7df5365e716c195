"""What every manifest says about the inputs, from the statistics of the first pass."""

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from megatron_ko.data.dedup.arrays import open_arrays
from megatron_ko.data.dedup.corpus import MOST_DOCUMENTS, ChunkArrays, ReadStatistics
from megatron_ko.data.dedup.manifest import InputEntry, RejectedRecords
from megatron_ko.data.dedup.options import InputFiles
from megatron_ko.data.jobs.job import Part, remove_job
from megatron_ko.data.text.inputs import content_hash
from megatron_ko.errors import DataError


def check_number(parts: ChunkArrays, signed: Sequence[Part[ReadStatistics]], files: InputFiles, folder: Path) -> None:
    """Refuse a corpus without documents, and one with more than can be numbered; nothing is left in ``folder``.

    Raises:
        DataError: either.
    """
    documents = parts.total - parts.items_before(files.existing)
    if not documents or parts.total >= MOST_DOCUMENTS:
        remove_job(folder)
    if not documents:
        reasons = dict(rejected_reasons(signed))
        raise DataError(
            "the corpus is empty: no document was found",
            got=f"rejected records {reasons}" if reasons else "no records",
            expected="at least one document",
            remedy=f"check the files and --json-key (now {files.key!r})",
        )
    if parts.total >= MOST_DOCUMENTS:
        raise DataError(
            "too many documents for one run",
            got=f"{parts.total:,}",
            expected=f"fewer than {MOST_DOCUMENTS:,}",
            remedy="deduplicate groups of sources, then their results",
        )


def rejected_reasons(signed: Sequence[Part[ReadStatistics]]) -> Counter[str]:
    """Rejected records of these parts by reason."""
    reasons: Counter[str] = Counter()
    for part in signed:
        reasons.update(part.statistics["rejected"])
    return reasons


def describe_rejected(signed: Sequence[Part[ReadStatistics]]) -> RejectedRecords:
    """Number and reasons of the rejected records."""
    reasons = rejected_reasons(signed)
    return {"records": reasons.total(), "reasons": dict(sorted(reasons.items()))}


def write_rejected(path: Path, signed: Sequence[Part[ReadStatistics]]) -> None:
    """The rejected records as lines of JSON, if there are any."""
    if not rejected_reasons(signed):
        return
    with path.open("wb") as stream:
        for part in signed:
            stream.write(open_arrays(part.path)["rejected"].tobytes())


def describe_inputs(
    files: InputFiles, sources: Iterable[int], signed: Sequence[Part[ReadStatistics]]
) -> list[InputEntry]:
    """Each of these sources with its size, hash, documents and rejected records."""
    described: list[InputEntry] = []
    for source in sources:
        path = files.paths[source]
        parts = [part for part in signed if part.statistics["source"] == source]
        described.append(
            {
                "path": str(path),
                "bytes": path.stat().st_size,
                "xxh3_128": content_hash(path),
                "documents": sum(part.statistics["documents"] for part in parts),
                "bytes_of_text": sum(part.statistics["bytes"] for part in parts),
                "rejected": rejected_reasons(parts).total(),
            }
        )
    return described
