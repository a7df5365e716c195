"""Output folders: a new one gets its name only when everything in it is proven; one that exists is checked."""

import errno
import glob
import os
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path

import orjson

from megatron_ko.artifacts import checkpoints, lineage
from megatron_ko.artifacts.native import Pretrained
from megatron_ko.config import ModelConfig
from megatron_ko.convert.gates import Depth, Gate, LogitGate, Proof
from megatron_ko.data.tokenizer import load_tokenizer
from megatron_ko.errors import ConvertError
from megatron_ko.log import get_logger
from megatron_ko.plan.params import count_parameters
from megatron_ko.storage.files import sync_folder, write_atomic
from megatron_ko.storage.locks import try_lock

_YOUNG_S = 60.0  # a younger folder may not be locked yet
_log = get_logger(__name__)


@contextmanager
def staged_folder(final: Path, replacing: bool = False) -> Iterator[Path]:
    """A new folder beside ``final``. It is renamed to ``final`` if the block succeeds, and removed if it fails.

    Args:
        final: where the folder comes to be.
        replacing: whether one that is there gives way.

    Raises:
        ConvertError: ``final`` exists.
    """
    if os.path.lexists(final) and not replacing:  # a broken link is in the way, too
        raise ConvertError("the output exists", got=final, remedy="choose another folder, or move it away")
    final.parent.mkdir(parents=True, exist_ok=True)
    temporary = final.with_name(_temporary_name(final))
    _remove_leftovers(final)
    temporary.mkdir()
    handle = os.open(temporary, os.O_RDONLY)
    try:
        try_lock(handle)
        yield temporary
        if replacing:
            final.rename(replaced := temporary.with_name(_temporary_name(final)))
            _rename(temporary, final)
            shutil.rmtree(replaced)
        else:
            _rename(temporary, final)
    finally:
        os.close(handle)
        shutil.rmtree(temporary, ignore_errors=True)


def _temporary_name(final: Path) -> str:
    return f".tmp-{final.name}-{uuid.uuid4().hex[:8]}"


def _remove_leftovers(final: Path) -> None:
    """Delete what killed conversions to the same folder left behind: nobody holds the lock of it."""
    for entry in final.parent.glob(f".tmp-{glob.escape(final.name)}-{'[0-9a-f]' * 8}"):
        with suppress(OSError):
            handle = os.open(entry, os.O_RDONLY | os.O_DIRECTORY)
            try:
                if try_lock(handle) and time.time() - entry.stat().st_mtime > _YOUNG_S:
                    _log.warning("removing what a conversion that was killed left behind: %s", entry)
                    shutil.rmtree(entry)
            finally:
                os.close(handle)


def _rename(temporary: Path, final: Path) -> None:
    try:
        temporary.rename(final)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise
        remedy = "another conversion was faster: choose another folder, or keep that one"
        raise ConvertError("the output exists by now", got=final, remedy=remedy) from None
    sync_folder(final.parent)


def require_tokenizer(source: Pretrained) -> None:
    """Refuse a run whose tokenizer is gone or has become another one: its text could not be compared.

    Raises:
        ConvertError: with both fingerprints.
    """
    if not source.fingerprint:
        return
    found = load_tokenizer(source.tokenizer).fingerprint if source.tokenizer else "none: data.tokenizer is no folder"
    if found != source.fingerprint:
        raise ConvertError(
            "the tokenizer of the run is not the one that it was trained with",
            got=f"{source.tokenizer or source.origin}: {found}",
            expected=source.fingerprint,
            remedy="put the folder back where data.tokenizer of the run says",
        )


def write_manifest(folder: Path) -> None:
    """Write manifest.json: size and hash of every file that is in the folder now."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    records = {str(path.relative_to(folder)): checkpoints.record_file(path) for path in paths}
    write_atomic(folder / checkpoints.MANIFEST, orjson.dumps(records, option=orjson.OPT_INDENT_2))


def write_folder_lineage(
    folder: Path,
    made_by: str,
    model: ModelConfig,
    parents: Sequence[lineage.Record],
    proof: Proof,
    tokenizer: Path | None,
    options: Mapping[str, object] | None = None,
) -> lineage.Record:
    """Write lineage.json of a folder whose weights are written and proven."""
    weights = lineage.hash_of_folder(folder)
    assert weights is not None
    fingerprint = None if tokenizer is None else load_tokenizer(tokenizer).fingerprint
    record = lineage.new_record(
        made_by,
        parents=parents,
        weights=weights,
        model=model,
        options=options,
        family=model.family,
        parameters=count_parameters(model).total,
        tokenizer=fingerprint and {"fingerprint": fingerprint},
        logits=proof.logits and proof.logits.to_json(),
        gates=[asdict(gate) for gate in proof.gates],
        beside=lineage.hashes_beside(folder),
    )
    lineage.write(folder, record)
    return record


def existing_proof(
    output: Path, made_by: str, parents: Sequence[lineage.Record], options: Mapping[str, object] | None = None
) -> Proof | None:
    """The proof of an output that was made earlier of the same weights in the same way, and is unchanged since.

    Returns:
        None when there is no folder yet.

    Raises:
        ConvertError: the folder is something else.
    """
    if not output.exists():
        return None
    record = lineage.read(output) if output.is_dir() else None
    if record is None:
        raise ConvertError(
            "the output exists", got=f"{output}, without lineage", remedy="choose another folder, or move it away"
        )
    wanted, found = _identity(made_by, parents, options or {}), _identity_of(record)
    if wanted != found:
        raise ConvertError(
            "the output exists and is of other weights, or was made in another way",
            got=f"{output}: {found}",
            expected=wanted,
            remedy="choose another folder, or move it away",
        )
    for one, other in zip(parents, record["parents"], strict=True):
        if one.get("beside", "") != other.get("beside", one.get("beside", "")):
            raise ConvertError(
                "the output exists and was made with another configuration or tokenizer",
                got=output,
                expected=f"what is beside the weights of {one['path']} now",
                remedy="choose another folder, or move it away",
            )
    if changed := lineage.changed_beside(output, record):
        raise ConvertError(
            "the output exists and was changed after it was made",
            got=f"{output}: {', '.join(changed)}",
            remedy="move it away",
        )
    if (weights := lineage.hash_of_folder(output)) != record["weights"]:
        raise ConvertError(
            "the output exists and was changed after it was made",
            got=f"{output}: weights {weights}",
            expected=f"weights {record['weights']}, as its lineage says",
            remedy="move it away",
        )
    gates = tuple(Gate(**gate) for gate in record["gates"])
    logits = record["logits"] and LogitGate(**record["logits"])
    return Proof(logits, gates, already=True)


def told(depth: Depth) -> dict[str, object]:
    """The depth of a proof among the options of a conversion: a quick one is not taken for a full one later."""
    return {} if depth == "full" else {"proof": depth}


def _identity_of(record: lineage.Record) -> str:
    return _identity(record.get("made_by", "unknown"), record.get("parents", []), record.get("options", {}))


def _identity(made_by: str, parents: Sequence[lineage.Record], options: Mapping[str, object]) -> str:
    said = ", ".join(f"{name} {value}" for name, value in sorted(options.items()))
    return f"{made_by} of {' and '.join(parent['weights'] for parent in parents)}" + (f" ({said})" if said else "")
