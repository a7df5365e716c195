"""Work in chunks that survives any kill: finished parts are recorded and never done again.

FOLDER/job.json             what the job is; a run that asks for something else is refused
FOLDER/part-00000012.SUFFIX the result of chunk 12: written under another name, renamed
FOLDER/rank-00000.jsonl     one line a finished part of a rank: its size, hash and statistics; the last line says "all"

Ranks share nothing but the folder. Rank r of n takes every n-th chunk.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from megatron_ko.data.jobs.workers import map_unordered
from megatron_ko.errors import DataError
from megatron_ko.storage.files import explain_disk_errors, hash_file, sync_folder
from megatron_ko.storage.journal import JOURNAL
from megatron_ko.storage.locks import try_lock

# Writes one part from the payload of a chunk; what it returns must survive JSON.
Work = Callable[[Any, Path], dict[str, Any]]
_DESCRIPTION = "job.json"


@dataclass(frozen=True)
class Job:
    """Where the parts of a job are kept, and what decides their content.

    Attributes:
        folder: beside the output; the caller removes it (``remove_job``) when the output has its name.
        identity: options and hashes of the inputs, as JSON values; not the number of workers.
        workers: processes of this rank; 1 works in this process.
        rank, size: this process and how many share the chunks.
        suffix: of the part files, for writers that go by it.
    """

    folder: Path
    identity: Mapping[str, object]
    workers: int = 1
    rank: int = 0
    size: int = 1
    suffix: str = ""


@dataclass(frozen=True)
class Part:
    """A finished chunk: its number, its file, and what ``work`` returned."""

    index: int
    path: Path
    statistics: dict[str, Any]


def run_job(
    job: Job, chunks: Iterable[tuple[int, Any]], work: Work, progress: Callable[[Part], None] = lambda _: None
) -> None:
    """Do what is left of this rank's share; then ``job_parts`` gives the parts of all ranks.

    Args:
        job: where and what.
        chunks: (index, payload), the same in every run; each payload is needed once only.
        work: picklable; called as ``work(payload, path)``, in a worker that it was sent to once.
        progress: told of every part of this rank, also of those that were done before.

    Raises:
        DataError: another job left the folder, the same rank is running, a worker died, a full disk.
    """
    with explain_disk_errors(job.folder), _opened(job) as records:
        done, finished = _resumed(job, records)
        for part in done.values():
            progress(part)
        if finished:
            return
        total = 0

        def missing() -> Iterator[tuple[int, Any]]:
            nonlocal total
            for index, payload in chunks:
                total += 1
                if (total - 1) % job.size == job.rank and index not in done:
                    yield index, payload

        try:
            with closing(map_unordered(_Runner(job, work), missing(), job.workers)) as results:
                for record in results:
                    done[record["index"]] = _part(job.folder, record)
                    _append(records, record)
                    progress(done[record["index"]])
        except BaseException:
            if not done and job.size == 1:
                remove_job(job.folder)  # nothing is worth keeping, and the next command may be another one
            raise
        _append(records, {"finished": total})


def job_parts(folder: Path, *, verify: bool = False) -> list[Part]:
    """The parts of all ranks, in order.

    Args:
        folder: of a job whose ranks are all finished.
        verify: compare hashes, not only sizes.

    Raises:
        DataError: which ranks have not finished, or which part was changed.
    """
    size = _read_description(folder)["size"]
    records: dict[int, dict[str, Any]] = {}
    unfinished = []
    for rank in range(size):
        path = _records_path(folder, rank)
        lines = _whole_lines(path.read_bytes()) if path.is_file() else []
        if not lines or "finished" not in lines[-1]:
            unfinished.append(rank)
        records |= _by_index(lines)
    if unfinished:
        raise DataError(
            f"the work in {folder} is not finished",
            got=f"{len(unfinished)} of {size} ranks are missing: {', '.join(map(str, unfinished[:20]))}",
            expected="every rank run to its end",
            remedy="run these ranks (again): they go on from what is done",
        )
    for record in records.values():
        if not _intact(folder, record, verify):
            raise DataError(
                f"{_part(folder, record).path} was changed or damaged",
                got="another size or hash",
                expected=f"{record['bytes']} bytes, xxh3 {record['xxh3_128']}",
                remedy="run its rank again: it is made anew",
            )
    return [_part(folder, records[index]) for index in sorted(records)]


def check_job(job: Job) -> None:
    """Refuse a folder that a job with another identity left; none at all is in order.

    Raises:
        DataError: what differs.
    """
    if (job.folder / _DESCRIPTION).exists():
        _compare(job)


def read_identity(folder: Path) -> dict[str, Any]:
    """What the job in ``folder`` is.

    Raises:
        DataError: there is none.
    """
    identity: dict[str, Any] = _read_description(folder)["identity"]
    return identity


def remove_job(folder: Path) -> None:
    """Forget a job, once its output has its name. What a restart would need to know that it has goes last."""
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name not in (JOURNAL, _DESCRIPTION):
            path.unlink()
    (folder / JOURNAL).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


def _records_path(folder: Path, rank: int) -> Path:
    return folder / f"rank-{rank:05d}.jsonl"


def _part(folder: Path, record: Mapping[str, Any]) -> Part:
    return Part(record["index"], folder / record["name"], record["statistics"])


class _Runner:
    """Makes one part; sent to the workers once, together with ``work``.

    Parts are not synced to the disk: a resumed run compares their hashes, so that what a power cut took is made again.
    """

    def __init__(self, job: Job, work: Work) -> None:
        self._folder, self._suffix, self._work = job.folder, job.suffix, work

    def __call__(self, chunk: tuple[int, Any]) -> dict[str, Any]:
        index, payload = chunk
        name = f"part-{index:08d}{self._suffix}"
        writing = self._folder / f"writing-{index:08d}{self._suffix}"
        writing.unlink(missing_ok=True)
        statistics = self._work(payload, writing)
        record = {
            "index": index,
            "name": name,
            "bytes": writing.stat().st_size,
            "xxh3_128": hash_file(writing),
            "statistics": statistics,
        }
        os.rename(writing, self._folder / name)
        return record


@contextmanager
def _opened(job: Job) -> Iterator[BinaryIO]:
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
            json.dump(_description(job), stream, ensure_ascii=False, indent=1)
            stream.flush()
            os.fsync(stream.fileno())
        os.rename(mine, path)  # ranks that start together write the same, or find out below
        sync_folder(job.folder)
    _compare(job)


def _description(job: Job) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(json.dumps({"size": job.size, "identity": dict(job.identity)}))
    return content


def _compare(job: Job) -> None:
    found, wanted = _read_description(job.folder), _description(job)
    if found == wanted:
        return
    here, there = (_flat({"ranks": text["size"], **text["identity"]}) for text in (wanted, found))
    differs = [name for name in {**there, **here} if here.get(name) != there.get(name)][:8]
    raise DataError(
        f"{job.folder} was left by an unfinished run with other options or inputs",
        got="; ".join(f"{name}: {_short(here.get(name))}" for name in differs),
        expected="; ".join(f"{name}: {_short(there.get(name))}" for name in differs),
        remedy=f"repeat the command that it was, or remove {job.folder} to start anew",
    )


def _read_description(folder: Path) -> dict[str, Any]:
    path = folder / _DESCRIPTION
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError(f"no unfinished work in {folder}", got=f"no {_DESCRIPTION}", remedy="check the path") from error
    except ValueError as error:
        raise DataError(f"{path} is damaged", got=str(error), remedy=f"remove {folder} to start anew") from error
    return content


def _resumed(job: Job, records: BinaryIO) -> tuple[dict[int, Part], bool]:
    """What this rank finished before and is still intact, and whether that is all; a line cut short is cut away."""
    records.seek(0)
    content = records.read()
    lines = _whole_lines(content)
    records.truncate(sum(len(line) + 1 for line in content.split(b"\n")[: len(lines)]))
    known = _by_index(lines)
    intact = {
        index: _part(job.folder, record) for index, record in known.items() if _intact(job.folder, record, verify=True)
    }
    return intact, bool(lines) and "finished" in lines[-1] and len(intact) == len(known)


def _whole_lines(content: bytes) -> list[dict[str, Any]]:
    """The records before the first one that a kill cut short."""
    lines = []
    for line in content.split(b"\n")[:-1]:
        try:
            lines.append(json.loads(line))
        except ValueError:
            break
    return lines


def _by_index(lines: Iterable[dict[str, Any]]) -> dict[int, dict[str, Any]]:
    """The last record of every part: one that was damaged is made and recorded again."""
    return {line["index"]: line for line in lines if "index" in line}


def _intact(folder: Path, record: Mapping[str, Any], verify: bool) -> bool:
    path = _part(folder, record).path
    if not path.is_file() or path.stat().st_size != record["bytes"]:
        return False
    return not verify or hash_file(path) == record["xxh3_128"]


def _append(records: BinaryIO, record: Mapping[str, Any]) -> None:
    records.write((json.dumps(record, ensure_ascii=False) + "\n").encode("utf-8"))
    records.flush()


def _flat(identity: Mapping[str, Any]) -> dict[str, object]:
    """The entries of inner mappings by dotted names, so that a difference is named exactly."""
    flat: dict[str, object] = {}
    for name, value in identity.items():
        flat |= {f"{name}.{inner}": held for inner, held in value.items()} if isinstance(value, dict) else {name: value}
    return flat


def _short(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 120 else f"{text[:117]}..."
