"""Turn the parts of all ranks into indexed files: count, cut into shards, merge, check samples, rename."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from megatron_ko.data.jobs.chunks import check_unchanged, identified_paths
from megatron_ko.data.jobs.job import Part, job_parts, read_identity, remove_job
from megatron_ko.data.jobs.workers import map_unordered
from megatron_ko.data.text.inputs import content_hash, input_bytes
from megatron_ko.data.tokens.identity import PreprocessIdentity
from megatron_ko.data.tokens.indexed import token_dtype
from megatron_ko.data.tokens.manifest import FILES, IndexManifest, read_index_manifest
from megatron_ko.data.tokens.merge_shard import MergePlan, MergeShard, ranges_of_shards
from megatron_ko.data.tokens.parts import EncodeStatistics, Layout, PartView
from megatron_ko.data.tokens.roundtrip import RoundTrip, check_samples
from megatron_ko.data.tokens.shards import borders, find_shards, shard_name
from megatron_ko.errors import DataError, conserve
from megatron_ko.storage.files import append_suffix
from megatron_ko.storage.journal import finish_renames, rename_together

_MERGED = "merged"


@dataclass(frozen=True)
class IndexedOutput:
    """One finished output.

    Attributes:
        prefix: of its files.
        manifest: what it holds.
        verified: samples that were decoded; None if that was not asked for.
    """

    prefix: Path
    manifest: IndexManifest
    verified: RoundTrip | None = None


def job_folder(output: Path) -> Path:
    """Where the parts of an output are kept until it is finished.

    Raises:
        DataError: the output is a folder, or has no name.
    """
    if output.is_dir():
        raise DataError(
            f"the output is a folder: {output}",
            expected="the beginning of the names of the files",
            remedy=f"--output {output / 'corpus'}",
        )
    return append_suffix(output, ".parts")


def merge(output: Path, workers: int = 1, verify_with: Path | None = None) -> list[IndexedOutput]:
    """Make indexed files from the parts of ``output``, then remove the parts.

    Args:
        output: prefix that was given to the ranks.
        workers: processes that merge shards.
        verify_with: folder of the tokenizer to decode samples with.

    Raises:
        DataError: ranks that have not finished, inputs that changed, an empty corpus, a full disk.
    """
    folder = job_folder(output)
    identity = PreprocessIdentity.from_json(read_identity(folder))
    verified: dict[str, RoundTrip] = {}
    if not finish_renames(folder):
        parts: list[Part[EncodeStatistics]] = job_parts(folder, verify=True)
        check_unchanged(identity.inputs, folder)
        totals = _Totals(parts)
        if not totals.documents:
            remove_job(folder)
            raise _empty(identity, totals)
        layout = _layout(identity)
        cuts = _cuts(identity, parts, totals, layout)
        merged = _merge(folder, identity, parts, cuts, layout, workers)
        totals.compare([[read_index_manifest(merged.folder / name) for name in names] for names in merged.names])
        if verify_with is not None:
            verified = check_samples(merged, parts, cuts, verify_with)
        _rename_files(folder, output, merged)
    prefixes = [prefix for name in identity.outputs for prefix in find_shards(output.with_name(name))]
    written = [IndexedOutput(prefix, read_index_manifest(prefix), verified.get(prefix.name)) for prefix in prefixes]
    remove_job(folder)
    return written


def _layout(identity: PreprocessIdentity) -> Layout:
    ids = token_dtype(identity.tokenizer.vocab_size)
    return Layout(len(identity.keys), ids, text_bytes=identity.sharded, marks=identity.chat is not None)


def _cuts(
    identity: PreprocessIdentity, parts: Sequence[Part[EncodeStatistics]], totals: "_Totals", layout: Layout
) -> tuple[int, ...]:
    """The first document of every shard, and the number of all documents."""
    number = identity.shards
    if identity.shard_tokens is not None:
        number = min(totals.documents, max(1, -(-max(totals.tokens) // identity.shard_tokens)))
    if number is None:
        return (0, totals.documents)
    return borders([PartView(part, layout) for part in parts], number)


def _merge(
    folder: Path,
    identity: PreprocessIdentity,
    parts: Sequence[Part[EncodeStatistics]],
    cuts: Sequence[int],
    layout: Layout,
    workers: int,
) -> MergePlan:
    """Write all shards of all keys into the job's folder."""
    number = len(cuts) - 1
    inputs = identified_paths(identity.inputs)
    output = MergePlan(
        folder=folder / _MERGED,
        keys=identity.keys,
        names=tuple(
            tuple(shard_name(name, shard, number if identity.sharded else None) for shard in range(number))
            for name in identity.outputs
        ),
        layout=layout,
        tokenizer=identity.tokenizer,
        sources=tuple((str(path), input_bytes(path), content_hash(path)) for path in inputs),
        unencodable=_added(part.statistics["unencodable"] for part in parts),
        chat=identity.chat,
        records=_added(part.statistics["records"] for part in parts),
    )
    output.folder.mkdir(exist_ok=True)
    tasks = [(key, shard) for key in range(layout.keys) for shard in range(number)]
    with closing(
        map_unordered(MergeShard(output, ranges_of_shards(parts, cuts)), tasks, min(workers, len(tasks)))
    ) as done:
        for _ in done:
            pass
    return output


def _added(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """Counts of all parts by name."""
    return dict(sorted(sum(map(Counter, counts), Counter()).items()))


def _rename_files(folder: Path, output: Path, merged: MergePlan) -> None:
    moves = []
    for name in (name for names in merged.names for name in names):
        files = [
            (append_suffix(merged.folder / name, suffix), append_suffix(output.with_name(name), suffix))
            for suffix in FILES
        ]
        moves += [(source, final) for source, final in files if source.exists()]
    rename_together(folder, moves)


class _Totals:
    """What the encoders counted."""

    def __init__(self, parts: Sequence[Part[EncodeStatistics]]) -> None:
        counted = [part.statistics for part in parts]
        self.documents = sum(part["documents"] for part in counted)
        self.rejected = sum(part["rejected"] for part in counted)
        self.tokens = [sum(column) for column in zip(*(part["tokens"] for part in counted), strict=True)]
        self.text_bytes = [sum(column) for column in zip(*(part["text_bytes"] for part in counted), strict=True)]
        self.reasons: Counter[str] = Counter()
        for part in counted:
            self.reasons.update(part["reasons"])
        self.first_rejected = next((part["first_rejected"] for part in counted if part["first_rejected"]), None)

    def compare(self, outputs: Sequence[Sequence[IndexManifest]]) -> None:
        """Check that every document, token and rejected record that was counted is in the files of every key."""
        for key, shards in enumerate(outputs):
            found = [
                sum(manifest.documents for manifest in shards),
                sum(manifest.tokens for manifest in shards),
                sum(manifest.bytes for manifest in shards),
                sum(manifest.rejected for manifest in shards),
                sum((Counter(manifest.rejected_reasons) for manifest in shards), Counter()),
                sum(source.documents for manifest in shards for source in manifest.sources),
            ]
            counted = [
                self.documents,
                self.tokens[key],
                self.text_bytes[key],
                self.rejected,
                self.reasons,
                self.documents,
            ]
            conserve("documents, tokens", counted, found)


def _empty(identity: PreprocessIdentity, totals: _Totals) -> DataError:
    example = f"; the first: {totals.first_rejected}" if totals.first_rejected else ""
    keys = ", ".join(map(repr, identity.keys))
    remedy = "check the files"
    if identity.chat is not None:
        return DataError(
            "no conversation can be trained on",
            got=f"{totals.rejected} rejected records {dict(totals.reasons)}{example}",
            expected="at least one",
            remedy="check the files; --map FIELD=NAME renames a field",
        )
    if any("'" in reason for reason in totals.reasons):
        remedy = f"check the files and --json-key (now {keys})"
    elif "no token" in totals.reasons:
        remedy = "a tokenizer with a token for every byte, or --unencodable replace"
    elif "invalid UTF-8" in totals.reasons:
        remedy = "if it is Korean text in CP949 (EUC-KR): --encoding cp949"
    return DataError(
        "the corpus is empty: no document was found",
        got=f"{totals.rejected} rejected records {dict(totals.reasons)}{example}",
        expected="at least one document",
        remedy=remedy,
    )
