"""Which files the names, folders, patterns and datasets of a command mean, and which format each has."""

import glob
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from megatron_ko.data.text.formats import InputFormat
from megatron_ko.data.text.hub import PREFIX as HUB
from megatron_ko.data.text.hub import hub_files
from megatron_ko.data.text.streams import STDIN, open_stream, standard_input, without_compression
from megatron_ko.errors import DataError
from megatron_ko.log import get_logger
from megatron_ko.storage.files import hash_file

_log = get_logger(__name__)

SUFFIXES: dict[str, InputFormat] = {
    ".txt": InputFormat.txt,
    ".jsonl": InputFormat.jsonl,
    ".ndjson": InputFormat.jsonl,
    ".json": InputFormat.jsonl,
    ".csv": InputFormat.csv,
    ".tsv": InputFormat.tsv,
    ".wet": InputFormat.wet,
    ".parquet": InputFormat.parquet,
    ".arrow": InputFormat.arrow,
}
# Formats that are read at several places at once, and so cannot be compressed as a whole.
_RANDOM_ACCESS = ("parquet", "arrow")
_SAVED_DATASET, _SAVED_DATASETS = "state.json", "dataset_dict.json"
_MANIFEST = "manifest.json"
_JOBS = ("job.json", "*/job.json")
_TELLING = (".manifest.json", ".rejected.jsonl")


def expand_inputs(given: Iterable[Path], format: InputFormat | None = None) -> tuple[Path, ...]:
    """Files in order: names as they are, folders and patterns sorted, saved datasets as their Arrow files, hub datasets
    as the files that were downloaded.

    Args:
        given: what the user named.
        format: of all files, also of those in folders whose suffix says nothing.

    Raises:
        DataError: nothing is there, or it holds no file of a known kind.
    """
    return tuple(path for name in given for path in _expanded(name, format))


def check_inputs(inputs: Sequence[Path], format: InputFormat | None = None) -> None:
    """Refuse, before any work, files that are missing, of unknown format, or given twice (even as a copy).

    Raises:
        DataError: which file, and why.
    """
    if not inputs:
        raise DataError("no input was given", remedy="--input FILE")
    for path in inputs:
        if path == STDIN:
            if format in _RANDOM_ACCESS:
                raise DataError(f"{format} cannot be read from the standard input", remedy="give the file by its name")
            continue
        _check_name(path)
        if not path.is_file():
            pipe = path.exists()
            raise DataError(
                f"{path} is no file" if pipe else f"no such file: {path}",
                expected="a file that can be read more than once" if pipe else None,
                remedy="preprocess reads a pipe as --input -" if pipe else "check --input",
            )
        format_of(path, format)
    check_distinct(inputs)


def check_distinct(inputs: Sequence[Path]) -> None:
    """Refuse a file that is given twice, even as a copy.

    Raises:
        DataError: which files.
    """
    same_size: dict[int, list[Path]] = {}
    for path in inputs:
        if path != STDIN:
            same_size.setdefault(path.stat().st_size, []).append(path)
    for candidates in same_size.values():
        _refuse_copies(candidates)


def format_of(path: Path, format: InputFormat | None = None) -> InputFormat:
    """The format by suffix, ignoring .gz and .zst, unless ``format`` is given; the standard input is JSON lines.

    Raises:
        DataError: unknown suffix.
    """
    inner = without_compression(path)
    found = format or (InputFormat.jsonl if path == STDIN else SUFFIXES.get(inner.suffix.lower()))
    if found is None or (found in _RANDOM_ACCESS and inner is not path):
        raise DataError(
            f"unknown kind of file: {path}",
            got=f"suffix {''.join(path.suffixes[-2:]) or 'none'}",
            expected=".txt .jsonl .json .csv .tsv .wet (also .gz, .zst) .parquet .arrow",
            remedy="give it such a name, or convert it; or say what it is with --format",
        )
    return found


def content_hash(path: Path) -> str:
    """xxh3_128 of the bytes of a file, as hexadecimal digits."""
    if path == STDIN:
        return standard_input.content_hash()
    return hash_file(path)


def input_bytes(path: Path) -> int:
    """Size of a file, or of what came from the standard input so far."""
    return standard_input.bytes if path == STDIN else path.stat().st_size


def _expanded(name: Path, format: InputFormat | None) -> list[Path]:
    if name == STDIN or name.is_file():
        return [name]
    if name.is_dir():
        return _saved_dataset(name) if (name / _SAVED_DATASET).is_file() else _folder(name, format)
    if str(name).startswith(HUB):
        return hub_files(str(name).removeprefix(HUB), SUFFIXES)
    if any(sign in str(name) for sign in "*?["):
        matches = map(Path, sorted(glob.glob(str(name), recursive=True)))
        found = [path for path in matches if path.is_file() and not any(map(_is_unfinished, path.parents))]
        if not found:
            raise DataError(f"no file matches {name}", remedy="check the pattern of --input")
        return found
    return [name]  # check_inputs says that it is missing


def _folder(folder: Path, format: InputFormat | None) -> list[Path]:
    if (folder / _SAVED_DATASETS).is_file():
        names = ", ".join(json.loads((folder / _SAVED_DATASETS).read_text(encoding="utf-8"))["splits"])
        raise DataError(
            f"{folder} holds several splits of a dataset", got=names, remedy=f"give one: {folder}/{names.split(',')[0]}"
        )
    files = list(_walk(folder))
    known: list[Path] = []
    other: list[Path] = []
    for path in files:
        (known if format or _has_kind(path) else other).append(path)
    if not known:
        raise DataError(
            f"no file of a known kind in {folder}",
            got=f"{len(files)} files",
            expected=f"{' '.join(SUFFIXES)}, or a dataset saved by save_to_disk",
            remedy="check --input",
        )
    if other:
        _log.warning("%s: %d files of other kinds are not read, for example %s", folder, len(other), other[0])
    return known


def _walk(folder: Path, above: frozenset[Path] = frozenset()) -> Iterator[Path]:
    """Files in order, without hidden ones; in a folder that another verb wrote, the documents that its manifest names.

    Manifests, reports and samples of dropped text are not input. Nor is what a verb is just writing into this folder:
    the same command would find other inputs when it goes on. Links to a folder above are not followed.
    """
    if (written := _written_here(folder)) is not None:
        if above:
            _log.warning("%s was written by another verb: what it holds is read beside what is around it", folder)
        yield from written
        return
    above |= {folder.resolve()}
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        if path.is_dir():
            if path.resolve() not in above and not _is_unfinished(path):
                yield from _walk(path, above)
        elif path.is_file() and not _beside_tokens(path):
            yield path


def _is_unfinished(folder: Path) -> bool:
    """Whether a folder keeps the parts of unfinished jobs (``jobs``)."""
    return folder.name.endswith(".parts") and any(next(folder.glob(name), None) for name in _JOBS)


def _beside_tokens(path: Path) -> bool:
    """Whether a file describes indexed tokens: PREFIX.manifest.json or PREFIX.rejected.jsonl beside PREFIX.idx."""
    prefix = next((path.name.removesuffix(end) for end in _TELLING if path.name.endswith(end)), None)
    return prefix is not None and path.with_name(f"{prefix}.idx").is_file()


def _written_here(folder: Path) -> list[Path] | None:
    """The files of documents that the manifest of a folder names; None where there is no such manifest."""
    try:
        manifest = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
        files = [entry.get("name") or entry["file"] for entry in manifest.get("shards") or manifest["outputs"]]
        return [folder / name for name in files] if manifest["created_by"].startswith("megatron_ko") else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _has_kind(path: Path) -> bool:
    inner = without_compression(path)
    suffix = inner.suffix.lower()
    return suffix in SUFFIXES and (inner is path or SUFFIXES[suffix] not in _RANDOM_ACCESS)


def _saved_dataset(folder: Path) -> list[Path]:
    """The Arrow files of a dataset that ``save_to_disk`` wrote, in their order."""
    try:
        state = json.loads((folder / _SAVED_DATASET).read_text(encoding="utf-8"))
        return [folder / entry["filename"] for entry in state["_data_files"]]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{folder / _SAVED_DATASET} is damaged", got=repr(error), remedy="save it again") from error


def _check_name(path: Path) -> None:
    """Refuse a name that cannot go into manifests, which are UTF-8; names from old Windows archives are often CP949."""
    try:
        str(path).encode("utf-8")
    except UnicodeEncodeError as error:
        shown = str(path).encode("utf-8", "backslashreplace").decode()
        raise DataError(
            "the name of a file is no UTF-8",
            got=shown,
            remedy="rename it; names in CP949: convmv -f CP949 -t UTF-8 --notest FILE",
        ) from error


def _refuse_copies(same_size: Sequence[Path]) -> None:
    seen: dict[str, Path] = {}
    for path in same_size if len(same_size) > 1 else ():
        digest = content_hash(path)
        if digest in seen and not _is_empty(path):
            raise DataError(
                "the same file is given twice",
                got=f"{seen[digest]} and {path}",
                expected="every document once",
                remedy="remove one of them from --input",
            )
        seen[digest] = path


def _is_empty(path: Path) -> bool:
    """Whether a file holds nothing, compressed or not; two empty files are not a document given twice."""
    if path.suffix == ".parquet":
        import pyarrow
        import pyarrow.parquet

        try:
            return bool(pyarrow.parquet.read_metadata(path).num_rows == 0)
        except (pyarrow.ArrowException, OSError):
            return False
    with open_stream(path) as stream:
        return not stream.read(1)
