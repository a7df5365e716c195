"""`data clean`: chunks through the pipeline into parts, parts into shards; see ``data.jobs`` for what survives a kill.

    OUTPUT.parts/    while the work lasts: parts, and in "output" what becomes
    OUTPUT/          clean-00000.jsonl.zst ...  manifest.json  report.json  retention.png
                     rejected.jsonl  samples/STAGE.VERB.REASON.jsonl

No byte of the output depends on workers, ranks, kills or restarts. It appears with one rename.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from megatron_ko.data.clean.chunk import CleanChunk, CleanStatistics
from megatron_ko.data.clean.config import CleanConfig
from megatron_ko.data.clean.finish import CleanIdentity, finish, finished_report
from megatron_ko.data.clean.pipeline import Pipeline
from megatron_ko.data.clean.report import CleanReport
from megatron_ko.data.clean.words import KIWI_BYTES_A_SECOND
from megatron_ko.data.jobs.chunks import COMPRESSION, chunk_bytes, input_identity, read_chunks
from megatron_ko.data.jobs.job import Job, Part, check_job, identity_to_json, remove_job, run_job
from megatron_ko.data.text.formats import Encoding, InputFormat, OutputFormat, TextUnit
from megatron_ko.data.text.inputs import check_inputs, input_bytes
from megatron_ko.data.text.records import Reading
from megatron_ko.data.text.streams import COMPRESSED, STDIN
from megatron_ko.errors import DataError
from megatron_ko.log import get_logger
from megatron_ko.storage.files import append_suffix, explain_disk_errors
from megatron_ko.storage.locks import try_lock

_log = get_logger(__name__)


@dataclass(frozen=True)
class CleanOptions:
    """What to clean into what.

    Attributes:
        inputs: files; documents keep their order.
        output: new folder.
        config: the pipeline.
        workers: processes; 1 works in this process.
        key: text field.
        text_unit: a document of a .txt file is a "line" or the whole "file".
        format: of the shards.
        shard_bytes: a shard is closed when it has at least this many bytes.
        rank, size: this process takes every ``size``-th chunk; the one that ends last writes the output.
        chunk_bytes: what a worker does at a time; None: by the size of the inputs.
        input_format: of all inputs; None: as their suffixes say.
        encoding: of text inputs.
    """

    inputs: tuple[Path, ...]
    output: Path
    config: CleanConfig
    workers: int = 1
    key: str = "text"
    text_unit: TextUnit = TextUnit.line
    format: OutputFormat = OutputFormat.jsonl_zst
    shard_bytes: int = 512 << 20
    rank: int = 0
    size: int = 1
    chunk_bytes: int | None = None
    input_format: InputFormat | None = None
    encoding: Encoding = Encoding.utf_8

    @property
    def reading(self) -> Reading:
        """How the inputs are read."""
        return Reading(
            self.inputs,
            self.key,
            text_unit=self.text_unit,
            keep_fields=True,
            format=self.input_format,
            chunk_bytes=self.chunk_bytes,
            encoding=self.encoding,
        )


def parts_folder(output: Path) -> Path:
    """Where the parts of an output are kept until it is finished."""
    return append_suffix(output, ".parts")


def clean(options: CleanOptions, progress: Callable[[int], None] = lambda _: None) -> CleanReport | None:
    """Clean this rank's share. Started again after a kill, it goes on where it stopped.

    Args:
        options: what to do.
        progress: called with the bytes of the inputs that are done.

    Returns:
        the report; None while other ranks are still at work.

    Raises:
        DataError: bad input, an existing output, a package that is missing, a full disk, a dead worker.
    """
    check_inputs(options.inputs, options.input_format)
    if STDIN in options.inputs:
        raise DataError(
            "the standard input cannot be cleaned", expected="files: a restart reads them again", remedy="--input FILE"
        )
    folder = parts_folder(options.output)
    identity = _identity(options)
    job = Job(
        folder, identity_to_json(identity), options.workers, options.rank, options.size, suffix=f".{options.format}"
    )
    check_job(job)
    if options.output.exists():
        return _already_there(options.output, folder)
    Pipeline(options.config)  # reports missing packages and files before any work
    if options.config.words == "kiwi":
        _tell_cost_of_kiwi(options)
    done = 0

    def counted(part: Part[CleanStatistics]) -> None:
        nonlocal done
        done += part.statistics["read"]
        progress(done)

    run_job(job, read_chunks(options.reading), CleanChunk(options.config, options.key), counted)
    with explain_disk_errors(options.output):
        (folder / f"ended-{options.rank:05d}").touch()
        if len(list(folder.glob("ended-*"))) < options.size:
            return None
        with _only_one(folder) as mine:
            return finish(folder, options.output, identity) if mine else None


def _tell_cost_of_kiwi(options: CleanOptions) -> None:
    """Say how long it will take, before it starts."""
    size = sum(input_bytes(path) * (COMPRESSION if path.suffix in COMPRESSED else 1) for path in options.inputs)
    hours = size / KIWI_BYTES_A_SECOND / options.workers / options.size / 3600
    _log.warning(
        "words: kiwi reads about %.3f MB of text a second in a process: about %.1f hours for %.1f MB in %d of them, "
        "less if earlier stages drop much; --sample N measures a few. words: eojeol is a hundred times faster",
        KIWI_BYTES_A_SECOND / 1e6,
        hours,
        size / 1e6,
        options.workers * options.size,
    )


def _identity(options: CleanOptions) -> CleanIdentity:
    return CleanIdentity(
        inputs=input_identity(options.inputs),
        chunk_bytes=options.chunk_bytes or chunk_bytes(options.inputs),
        pipeline=options.config.described(),
        key=options.key,
        text_unit=options.text_unit,
        format=options.format,
        shard_bytes=options.shard_bytes,
        input_format=options.input_format,
        encoding=options.encoding.value,
    )


def _already_there(output: Path, folder: Path) -> CleanReport:
    """The report of a run that was killed after its output got its name, before its parts were removed."""
    if folder.exists() and not (folder / "output").exists() and (report := finished_report(output)) is not None:
        remove_job(folder)
        return report
    raise DataError(
        "the output exists already; nothing is overwritten",
        got=output,
        remedy="choose another --output, or remove it",
    )


@contextmanager
def _only_one(folder: Path) -> Iterator[bool]:
    """Whether this process may finish; several ranks can end at the same time."""
    with (folder / "finish.lock").open("ab") as stream:
        yield try_lock(stream)
