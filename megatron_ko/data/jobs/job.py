"""Work in chunks that survives any kill: finished parts are recorded and never done again.

FOLDER/job.json             what the job is; a run that asks for something else is refused
FOLDER/part-00000012.SUFFIX the result of chunk 12: written under another name, then renamed
FOLDER/rank-00000.jsonl     one line a finished part of a rank: its size, hash and statistics; the last line says "all"

Ranks share nothing but the folder. Rank r of n takes every n-th chunk.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Generic, TypeVar

from megatron_ko.data.jobs.workers import map_unordered
from megatron_ko.errors import DataError
from megatron_ko.storage.files import explain_disk_errors, hash_file, sync_folder
from megatron_ko.storage.journal import JOURNAL
from megatron_ko.storage.locks import try_lock
from megatron_ko.storage.open_json import JsonObject

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Payload = TypeVar("Payload")
# What a part counts, as a TypedDict: it is kept as JSON beside the part.
Statistics = TypeVar("Statistics")
Statistics_co = TypeVar("Statistics_co", covariant=True)
# Writes one part from the payload of a chunk, and says what is in it.
Work = Callable[[Payload, Path], Statistics]
_DESCRIPTION = "job.json"


@dataclass(frozen=True)
class Job:
    """Where the parts of a job are kept, and what decides their content.

    Attributes:
        folder: beside the output; the caller removes it (``remove_job``) when the output has its name.
        identity: options and hashes of the inputs, as JSON values; not the number of workers.
        workers: processes of this rank; 1 works in this process.
        rank, size: this process and how many share the chunks.
        suffix: of the part files; some writers choose the format by it.
    """

    folder: Path
    identity: Mapping[str, object]
    workers: int = 1
    rank: int = 0
    size: int = 1
    suffix: str = ""


@dataclass(frozen=True)
class Part(Generic[Statistics_co]):
    """A finished chunk: its number, its file, and what ``work`` returned."""

    index: int
    path: Path
    statistics: Statistics_co


@dataclass(frozen=True)
class _Record:
    """The line about a finished part: its number, name, size and hash, and what ``work`` returned."""

    index: int
    name: str
    bytes: int
    xxh3_128: str
    statistics: Any


@dataclass(frozen=True)
class _Records:
    """The lines of one rank.

    Attributes:
        parts: the last record of every part: one that was damaged is made and recorded again.
        finished: whether the rank has come to its end.
        size: bytes of the whole lines; a kill may have cut the next one short.
    """

    parts: dict[int, _Record]
    finished: bool
    size: int


@dataclass(frozen=True)
class _Description:
    """What job.json says: how many ranks share the job, and its identity."""

    size: int
    identity: JsonObject


def run_job(
    job: Job,
    chunks: Iterable[tuple[int, Payload]],
    work: Work[Payload, Statistics],
    progress: Callable[[Part[Statistics]], None] = lambda _: None,
) -> None:
    """Do what is left of this rank's share; then ``job_parts`` gives the parts of all ranks.

    Args:
        job: where and what.
        chunks: (index, payload), the same in every run; each payload is used only once.
        work: picklable; sent to each worker once, and called there as ``work(payload, path)``.
        progress: called with every part of this rank, including those that were done before.

    Raises:
        DataError: the folder belongs to another job, the same rank is running, a worker died, the disk is full.
    """
    with explain_disk_errors(job.folder), _open_records(job) as records:
        done, finished = _resumed(job, records)
        for part in done.values():
            progress(part)
        if finished:
            return
        total = 0

        def missing() -> Iterator[tuple[int, Payload]]:
            nonlocal total
            for index, payload in chunks:
                total += 1
                if (total - 1) % job.size == job.rank and index not in done:
                    yield index, payload

        try:
            with closing(map_unordered(_Runner(job, work), missing(), job.workers)) as results:
                for record in results:
                    done[record.index] = _part(job.folder, record)
                    _append(records, asdict(record))
                    progress(done[record.index])
        except BaseException:
            if not done and job.size == 1:
                remove_job(job.folder)  # nothing is worth keeping, and the next command may be another one
            raise
        _append(records, {"finished": total})


def job_parts(folder: Path, *, verify: bool = False) -> list[Part[Any]]:
    """The parts of all ranks, in order.

    Args:
        folder: of a job whose ranks are all finished.
        verify: compare hashes, not only sizes.

    Raises:
        DataError: which ranks have not finished, or which part was changed.
    """
    size = _read_description(folder).size
    parts: dict[int, _Record] = {}
    unfinished = []
    for rank in range(size):
        path = _records_path(folder, rank)
        records = _read_records(path.read_bytes() if path.is_file() else b"")
        if not records.finished:
            unfinished.append(rank)
        parts |= records.parts
    if unfinished:
        raise DataError(
            f"the work in {folder} is not finished",
            got=f"{len(unfinished)} of {size} ranks are missing: {', '.join(map(str, unfinished[:20]))}",
            expected="every rank run to its end",
            remedy="run these ranks (again): they go on from what is done",
        )
    for record in parts.values():
        if not _intact(folder, record, verify):
            raise DataError(
                f"{_part(folder, record).path} was changed or damaged",
                got="another size or hash",
                expected=f"{record.bytes} bytes, xxh3 {record.xxh3_128}",
                remedy="run its rank again: it is made anew",
            )
    return [_part(folder, parts[index]) for index in sorted(parts)]


def check_job(job: Job) -> None:
    """Refuse the folder of a job with another identity. A folder without a job is fine.

    Raises:
        DataError: what differs.
    """
    if (job.folder / _DESCRIPTION).exists():
        _compare(job)


def identity_to_json(identity: "DataclassInstance") -> JsonObject:
    """The identity of a job from a dataclass. Names of fields become words, because messages show them."""
    return {name.replace("_", " "): value for name, value in asdict(identity).items()}


def read_identity(folder: Path) -> JsonObject:
    """The identity of the job in ``folder``, as JSON: each verb knows what its own jobs hold.

    Raises:
        DataError: there is no job.
    """
    return _read_description(folder).identity


def remove_job(folder: Path) -> None:
    """Delete the folder of a job whose output is finished.

    The journal and job.json go last: until then a restart can see that the job is finished.
    """
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name not in (JOURNAL, _DESCRIPTION):
            path.unlink()
    (folder / JOURNAL).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


def _records_path(folder: Path, rank: int) -> Path:
    return folder / f"rank-{rank:05d}.jsonl"


def _part(folder: Path, record: _Record) -> Part[Any]:
    return Part(record.index, folder / record.name, record.statistics)


class _Runner(Generic[Payload]):
    """Makes one part; sent to the workers once, together with ``work``.

    Parts are not synced to the disk: a resumed run compares their hashes, and makes again what a power cut destroyed.
    """

    def __init__(self, job: Job, work: Work[Payload, Any]) -> None:
        self._folder, self._suffix, self._work = job.folder, job.suffix, work

    def __call__(self, chunk: tuple[int, Payload]) -> _Record:
        index, payload = chunk
        name = f"part-{index:08d}{self._suffix}"
        writing = self._folder / f"writing-{index:08d}{self._suffix}"
        writing.unlink(missing_ok=True)
        statistics = self._work(payload, writing)
        record = _Record(index, name, writing.stat().st_size, hash_file(writing), statistics)
        os.rename(writing, self._folder / name)
        return record


@contextmanager
def _open_records(job: Job) -> Iterator[BinaryIO]:
    """This rank's records, locked against a second process of the same rank."""
    assert 0 <= job.rank < job.size
    job.folder.mkdir(parents=True, exist_ok=True)
    _describe(job)
    with _records_path(job.folder, job.rank).open("ab+") as records:
        if not try_lock(records):  # where there are no locks, parts are renamed atomically all the same
            raise DataError(
                f"another process is working in {job.folder}"
                + (f" as rank {job.rank} of {job.size}" if job.size > 1 else ""),
                remedy="wait for it, or choose another --output",
            )
        yield records


def _describe(job: Job) -> None:
    """Write job.json, or compare with the one that is there."""
    path = job.folder / _DESCRIPTION
    if not path.exists():
        mine = path.with_name(f"{_DESCRIPTION}.{job.rank}.{os.getpid()}")
        with mine.open("w", encoding="utf-8") as stream:
            json.dump(asdict(_description(job)), stream, ensure_ascii=False, indent=1)
            stream.flush()
            os.fsync(stream.fileno())
        os.rename(mine, path)  # ranks that start together write the same; if not, the comparison below finds out
        sync_folder(job.folder)
    _compare(job)


def _description(job: Job) -> _Description:
    return _Description(job.size, json.loads(json.dumps(dict(job.identity))))


def _compare(job: Job) -> None:
    found, wanted = _read_description(job.folder), _description(job)
    if found == wanted:
        return
    here, there = (_flat({"ranks": job.size, **job.identity}) for job in (wanted, found))
    differs = [name for name in {**there, **here} if here.get(name) != there.get(name)][:8]
    raise DataError(
        f"{job.folder} was left by an unfinished run with other options or inputs",
        got="; ".join(f"{name}: {_short(here.get(name))}" for name in differs),
        expected="; ".join(f"{name}: {_short(there.get(name))}" for name in differs),
        remedy=f"repeat the command that it was, or remove {job.folder} to start anew",
    )


def _read_description(folder: Path) -> _Description:
    path = folder / _DESCRIPTION
    try:
        return _Description(**json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError as error:
        raise DataError(f"no unfinished work in {folder}", got=f"no {_DESCRIPTION}", remedy="check the path") from error
    except (ValueError, TypeError) as error:
        raise DataError(f"{path} is damaged", got=str(error), remedy=f"remove {folder} to start anew") from error


def _resumed(job: Job, stream: BinaryIO) -> tuple[dict[int, Part[Any]], bool]:
    """The parts that this rank finished before and that are still intact, and whether these are all of its parts.

    A line that a kill cut short is removed from the file.
    """
    stream.seek(0)
    records = _read_records(stream.read())
    stream.truncate(records.size)
    intact = {
        index: _part(job.folder, record)
        for index, record in records.parts.items()
        if _intact(job.folder, record, verify=True)
    }
    return intact, records.finished and len(intact) == len(records.parts)


def _read_records(content: bytes) -> _Records:
    """The lines before the first one that a kill cut short."""
    parts: dict[int, _Record] = {}
    finished, size = False, 0
    for line in content.split(b"\n")[:-1]:
        try:
            record = json.loads(line)
        except ValueError:
            break
        size += len(line) + 1
        finished = "finished" in record
        if not finished:
            parts[record["index"]] = _Record(**record)
    return _Records(parts, finished, size)


def _intact(folder: Path, record: _Record, verify: bool) -> bool:
    path = _part(folder, record).path
    if not path.is_file() or path.stat().st_size != record.bytes:
        return False
    return not verify or hash_file(path) == record.xxh3_128


def _append(records: BinaryIO, record: Mapping[str, object]) -> None:
    records.write((json.dumps(record, ensure_ascii=False) + "\n").encode("utf-8"))
    records.flush()


def _flat(identity: Mapping[str, object]) -> dict[str, object]:
    """The entries of inner mappings by dotted names, so that a difference is named exactly."""
    flat: dict[str, object] = {}
    for name, value in identity.items():
        flat |= {f"{name}.{inner}": held for inner, held in value.items()} if isinstance(value, dict) else {name: value}
    return flat


def _short(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 120 else f"{text[:117]}..."
