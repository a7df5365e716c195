"""The folder beside the output in which all passes keep their parts, so that a killed run can go on."""

import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from megatron_ko.data.dedup.corpus import ChunkStatistics, SourceChunk, read_corpus
from megatron_ko.data.dedup.manifest import OutputEntry
from megatron_ko.data.dedup.options import InputFiles, Resources
from megatron_ko.data.dedup.output import WriteStatistics
from megatron_ko.data.jobs.chunks import input_identity
from megatron_ko.data.jobs.job import Job, Part, Payload, Statistics, Work, check_job, job_parts, run_job
from megatron_ko.data.text.inputs import SUFFIXES, content_hash
from megatron_ko.data.text.streams import COMPRESSED
from megatron_ko.data.text.writers import DocumentWriter, merge_documents
from megatron_ko.errors import DataError
from megatron_ko.storage.files import explain_disk_errors, sync_folder
from megatron_ko.storage.locks import try_lock

# Inputs up to this size are read by one process: it is done before others would have started.
_SMALL = 16 << 20
# What is written beside the documents.
MANIFEST, REPORT, REJECTED, REMOVED = "manifest.json", "report.json", "rejected.jsonl", "removed.jsonl.zst"
_RESERVED = (MANIFEST, REPORT, REJECTED, REMOVED)
# A file in this folder with the hash of the manifest; it is written just before the output gets its name.
_PUBLISHED = "published"
# Name of the pass, and how much of it is done, from 0 to 1.
PassProgress = Callable[[str, float], None]
OfChunk = TypeVar("OfChunk", bound=ChunkStatistics)


class WorkFolder:
    """Runs passes over the corpus, or over units of work, one after another.

    Args:
        folder: of the parts.
        files: the inputs.
        settings: options that decide the result.
        resources: processes and memory.
        progress: told how far each pass is.
    """

    def __init__(
        self,
        folder: Path,
        files: InputFiles,
        settings: Mapping[str, object],
        resources: Resources,
        progress: PassProgress,
    ) -> None:
        self.folder, self._files, self.resources, self._progress = folder, files, resources, progress
        self._identity = {**settings, "inputs": input_identity(files.paths)}

    def over_corpus(self, name: str, work: Work[SourceChunk, OfChunk]) -> list[Part[OfChunk]]:
        """A pass over all documents."""
        return self._over_sources(name, work, range(len(self._files.paths)), 0, "")

    def over_written(
        self, name: str, work: Work[SourceChunk, OfChunk], suffix: str, first: int = 0
    ) -> list[Part[OfChunk]]:
        """A pass over the documents that are deduplicated; ``first`` is the number of their first chunk."""
        return self._over_sources(name, work, self._files.written, first, suffix)

    def _over_sources(
        self, name: str, work: Work[SourceChunk, OfChunk], sources: range, first: int, suffix: str
    ) -> list[Part[OfChunk]]:
        total = max(1, sum(self._files.paths[source].stat().st_size for source in sources))
        read = 0

        def progress(part: Part[OfChunk]) -> None:
            nonlocal read
            read += part.statistics["read"]
            self._progress(name, read / total)

        workers = self.resources.workers if total > _SMALL else 1
        return self._run(name, read_corpus(self._files, sources, first), work, suffix, workers, progress)

    def over_units(
        self,
        name: str,
        units: Iterable[tuple[int, Payload]],
        work: Work[Payload, Statistics],
        suffix: str = "",
    ) -> list[Part[Statistics]]:
        """A pass over numbered units of work."""
        listed = list(units)
        done = 0

        def progress(_: Part[Any]) -> None:
            nonlocal done
            done += 1
            self._progress(name, done / len(listed))

        # A few units are done before other processes have started.
        workers = self.resources.workers if len(listed) >= 4 * self.resources.workers else 1
        return self._run(name, listed, work, suffix, workers, progress)

    def _run(
        self,
        name: str,
        chunks: Iterable[tuple[int, Payload]],
        work: Work[Payload, Statistics],
        suffix: str,
        workers: int,
        progress: Callable[[Part[Statistics]], None],
    ) -> list[Part[Statistics]]:
        job = Job(self.folder / name, self._identity, workers=workers, suffix=suffix)
        try:
            check_job(job)
        except DataError as error:
            raise DataError(
                f"{self.folder} was left by an unfinished run with other options or inputs",
                got=error.got,
                expected=error.expected,
                remedy="repeat the command that it was, or start anew with --restart",
            ) from error
        run_job(job, chunks, work, progress)
        return job_parts(job.folder)

    def array(self, name: str) -> Path:
        """Path of an array file, which every run makes anew."""
        folder = self.folder / "arrays"
        folder.mkdir(parents=True, exist_ok=True)
        return folder / name


def work_folder_of(output: Path) -> Path:
    """Where the parts are kept, beside the output."""
    return output.with_name(f"{output.name}.parts")


@contextmanager
def locked(folder: Path, output: Path) -> Iterator[None]:
    """Hold the work folder for this process alone.

    Raises:
        DataError: another process works there, the disk is full.
    """
    with explain_disk_errors(output):
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "lock").open("ab") as lock:
            if not try_lock(lock):
                raise DataError(
                    f"another process is writing {output}", remedy="wait for it, or choose another --output"
                )
            yield


def write_outputs(
    folder: Path, files: InputFiles, written: Sequence[Part[WriteStatistics]], suffix: str
) -> list[OutputEntry]:
    """One file a source that is written, in order, from the parts of its chunks.

    Returns:
        for every one its file, documents, bytes of text, size and hash.
    """
    outputs: list[OutputEntry] = []
    names = output_names([files.paths[source] for source in files.written], suffix)
    for source, name in zip(files.written, names, strict=True):
        parts = [part for part in written if part.statistics["source"] == source]
        path = folder / name
        if parts:
            merge_documents([part.path for part in parts], path)
        else:
            with DocumentWriter(path, files.key):
                pass
        outputs.append(
            {
                "file": name,
                "documents": sum(part.statistics["documents"] for part in parts),
                "bytes_of_text": sum(part.statistics["bytes"] for part in parts),
                "bytes": path.stat().st_size,
                "xxh3_128": content_hash(path),
            }
        )
    return outputs


def output_names(paths: Sequence[Path], suffix: str) -> list[str]:
    """A file name for each input: its own without suffixes; where two are the same, with its folder's, or numbered.

    None is the name of a manifest, report or list that is written beside them.
    """
    stems = []
    for path in paths:
        stem = path.name
        for ending in (*COMPRESSED, *SUFFIXES):
            stem = stem.removesuffix(ending)
        stems.append(stem)
    taken: Counter[str] = Counter()
    names = []
    for path, stem in zip(paths, stems, strict=True):
        if stems.count(stem) > 1 and path.parent.name:
            stem = f"{path.parent.name}-{stem}"
        name = stem
        while name in taken or name + suffix in _RESERVED:
            taken[stem] += 1
            name = f"{stem}-{taken[stem] + 1}"
        taken[name] += 0
        names.append(name + suffix)
    return names


def empty_folder(path: Path) -> Path:
    """An empty folder; what an earlier run left there is removed."""
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)
    return path


def write_text(path: Path, text: str) -> None:
    """A small file, on the disk when this returns."""
    with path.open("w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())


def finished_before(folder: Path, output: Path, settings: Mapping[str, object]) -> bool:
    """Whether the same command was killed after its output got its name, before its parts were removed."""
    marker, manifest = folder / _PUBLISHED, output / MANIFEST
    if not marker.is_file() or not manifest.is_file() or marker.read_text("utf-8") != content_hash(manifest):
        return False
    found = json.loads(manifest.read_text("utf-8"))["options"]
    return bool(found == json.loads(json.dumps(dict(settings))))


def rename_output(assembled: Path, output: Path) -> None:
    """Give a folder, whose files are on the disk, its final name; from then on only the parts are left to remove."""
    sync_folder(assembled)
    write_text(assembled.parent / _PUBLISHED, content_hash(assembled / MANIFEST))
    os.rename(assembled, output)
    sync_folder(output.parent)
