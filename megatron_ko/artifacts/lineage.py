"""Where weights come from: lineage.json of runs and artefacts. Needs no torch.

A record contains the records of its parents, so that the ancestry is known even without the parents' folders. Weights
are identified by the hash of their files, never by the name of a folder.
"""

import hashlib
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson
import xxhash

import megatron_ko
from megatron_ko.artifacts import checkpoints
from megatron_ko.config import ModelConfig, dump
from megatron_ko.errors import KoError
from megatron_ko.storage.files import hash_file, write_atomic

FILE = "lineage.json"
_WEIGHTS = ("*.safetensors", "*.gguf", "weights/*")
_BESIDE = ("*.json", "*.jinja", "*.model", "*.txt", "*.py", "*.yaml", "additional_chat_templates/*")
# Files that change what a tokenizer or a conversation is when they are added to a folder.
_DECIDING = ("tokenizer", "special_tokens_map", "added_tokens", "chat_template", "generation_config")
# In place of a command, where a folder is no longer what a command made.
CHANGED = "changed after it was made"
Record = dict[str, Any]


def new_record(
    made_by: str,
    *,
    parents: Sequence[Record],
    weights: str,
    model: ModelConfig | None = None,
    options: Mapping[str, Any] | None = None,
    **facts: Any,
) -> Record:
    """The lineage record of a new artefact.

    Args:
        made_by: the command.
        parents: what it was made from, as described by ``ancestor``.
        weights: hash of its weights.
        model: the network.
        options: other options that affect the weights.
        facts: anything else, such as parameters, tokenizer, gates.
    """
    config = {} if model is None else {"config_sha256": hashlib.sha256(dump(model).encode()).hexdigest()}
    return {
        "made_by": made_by,
        "created": now(),
        "code": code(),
        "weights": weights,
        **config,
        "options": dict(options or {}),
        **facts,
        "parents": list(parents),
    }


def ancestor(path: Path, weights: str, step: int = 0, tokens: int = 0, beside: str = "") -> Record:
    """A parent, with its own record if it has one.

    A folder that is no longer what its record says, because somebody changed it or saved another model over it, is not
    what was proven: it enters as changed, with the old record as a parent of which nothing is proven.

    Args:
        path: its folder.
        weights: hash of its weights.
        step, tokens: how long it was trained with this project.
        beside: hash of its configuration and tokenizer.
    """
    trained = {"step": step, "tokens": tokens} if step else {}
    others = {"beside": beside} if beside else {}
    node = {"path": str(path.resolve()), "weights": weights, **others, **trained}
    record = read(path)
    if record is not None and (changed := _changed(path, record, weights)):
        before = {"path": node["path"], "weights": record.get("weights", ""), "unproven": True, "record": record}
        record = {"made_by": CHANGED, "weights": weights, "changed": changed, "parents": [before]}
    return {**node, "record": record}


def _changed(folder: Path, record: Record, weights: str) -> list[str]:
    """What of a folder is no longer what its record says."""
    others = ["weights"] if record.get("weights", weights) != weights else []
    return [*others, *changed_beside(folder, record)]


def write(folder: Path, record: Record) -> None:
    """Write the record of a folder."""
    write_atomic(folder / FILE, orjson.dumps(record, option=orjson.OPT_INDENT_2))


def read(folder: Path) -> Record | None:
    """The record of a folder; None if it has none.

    Raises:
        KoError: it is damaged.
    """
    path = folder / FILE
    if not path.is_file():
        return None
    try:
        record = _in_present_form({**orjson.loads(path.read_bytes())})
        list(draw({"path": str(path), "weights": "", "record": record}))  # a record that cannot be drawn is damaged
        return record
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise KoError("a lineage is damaged", got=f"{path}: {error!r}", remedy="restore it from a copy") from None


def _in_present_form(record: Record) -> Record:
    """The record with all parents in the form of ``ancestor``; older records list the hashes of their files."""
    one, written = record.pop("parent", None), record.get("files")
    if one:
        weights = hash_of_hashes(one.get("files") or {})
        record["parents"] = [{"path": one["path"], "weights": weights, "record": one.get("lineage")}]
    record["parents"] = [{**parent} for parent in record.get("parents", [])]
    if "weights" not in record and written:
        record["weights"] = hash_of_hashes({file["name"]: file["xxh3_128"] for file in written})
    return record


def hash_of_hashes(hashes: Mapping[str, str]) -> str:
    """One hash for several files: xxh3-128 over their names and hashes, sorted by name."""
    digest = xxhash.xxh3_128()
    for name in sorted(hashes):
        digest.update(f"{name} {hashes[name]}\n".encode())
    return digest.hexdigest()


def hash_of_folder(folder: Path) -> str | None:
    """Hash of the weights in an artefact, computed now; None if there are none."""
    paths = sorted(path for pattern in _WEIGHTS for path in folder.glob(pattern) if path.is_file())
    found = {str(path.relative_to(folder)): hash_file(path) for path in paths}
    return hash_of_hashes(found) if found else None


def hashes_beside(folder: Path) -> dict[str, str]:
    """Hashes of the other files that the weights in a folder depend on: configuration, tokenizer, code."""
    paths = sorted(path for pattern in _BESIDE for path in folder.glob(pattern) if path.is_file())
    return {
        str(path.relative_to(folder)): hash_file(path)
        for path in paths
        if path.name not in (FILE, checkpoints.MANIFEST) and not path.name.endswith(".index.json")
    }


def hash_beside(folder: Path | None, more: str = "") -> str:
    """One hash of these files (none if there is no folder) and of a text."""
    found = {} if folder is None else hashes_beside(folder)
    return hash_of_hashes({**found, "": xxhash.xxh3_128_hexdigest(more.encode())})


def changed_beside(folder: Path, record: Record) -> list[str]:
    """Names of such files that have changed, disappeared or come to decide something since the record was written."""
    recorded = record.get("beside") or {}
    if not recorded:  # earlier versions did not write one
        return []
    found = hashes_beside(folder)
    new = [name for name in found if name not in recorded and name.startswith(_DECIDING)]
    return [name for name, digest in recorded.items() if found.get(name) != digest] + new


def now() -> str:
    """The current time, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def code() -> Record:
    """Version and commit of this package, and whether it differs from the commit; None for both outside a clone."""
    folder = str(Path(megatron_ko.__file__).parent)
    # An installed package may be inside an unrelated repository.
    ours = _git(folder, "ls-files", "--error-unmatch", "__init__.py") is not None
    changes = _git(folder, "--no-optional-locks", "status", "--porcelain", "--", ".") if ours else None
    return {
        "version": megatron_ko.__version__,
        "commit": _git(folder, "rev-parse", "HEAD") if ours else None,
        "dirty": None if changes is None else bool(changes),
    }


def _git(folder: str, *words: str) -> str | None:
    """Output of git; None if git is missing or too slow, or if there is no repository."""
    try:
        answer = subprocess.run(["git", "-C", folder, *words], capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() if answer.returncode == 0 else None


def draw(node: Record, whole_paths: bool = True) -> Iterator[str]:
    """The ancestry of an ``ancestor`` as the lines of a tree, with parents below their children."""

    def shown(path: str) -> str:
        return path if whole_paths else Path(path).name

    yield _title(node, shown)
    yield from _below(node, "", shown)


def _below(node: Record, indent: str, shown: Callable[[str], str]) -> Iterator[str]:
    record = node.get("record") or {}
    leaves = [f"changed   {', '.join(record['changed'])}: not proven"] if record.get("changed") else []
    leaves += [f"gates     {_gates(record)}"] if record.get("gates") else []
    leaves += [f"saved     {_saved(record['checkpoint'])}"] if record.get("checkpoint") else []
    leaves += [f"tokenizer {_short(_fingerprint(record))}"] if _fingerprint(record) else []
    leaves += [f"config    {_short(record['config_sha256'])}"] if record.get("config_sha256") else []
    leaves += [f"code      {_code(record['code'])}"] if record.get("code") else []
    leaves += [
        f"corpus    {shown(part['prefix'])}: {part['tokens']:,} tokens, sha256 {_short(part['sha256'])}"
        for part in record.get("corpus", [])
    ]
    parents = record.get("parents") or []
    for number, item in enumerate([*leaves, *parents]):
        last = number == len(leaves) + len(parents) - 1
        yield f"{indent}{'└─' if last else '├─'} {item if isinstance(item, str) else _title(item, shown)}"
        if not isinstance(item, str):
            yield from _below(item, indent + ("   " if last else "│  "), shown)


def _title(node: Record, shown: Callable[[str], str]) -> str:
    record = node.get("record") or {}
    made = record.get("made_by") or ("train" if "run" in record else "origin unknown")
    options = ", ".join(f"{name} {value}" for name, value in record.get("options", {}).items() if value is not None)
    trained = f"step {node['step']:,}, {node['tokens']:,} tokens" if node.get("step") else ""
    made = f"unproven, once {made}" if node.get("unproven") else made
    parts = (made, options, trained, f"weights {_short(node['weights'])}" if node.get("weights") else "")
    return f"{shown(node['path'])}: {', '.join(part for part in parts if part)}"


def _saved(checkpoint: Record) -> str:
    return f"step {checkpoint['step']:,}, {checkpoint['tokens']:,} tokens, weights {_short(checkpoint['weights'])}"


def _gates(record: Record) -> str:
    gates = record["gates"]
    return f"{sum(gate['ok'] for gate in gates)} of {len(gates)} passed"


def _fingerprint(record: Record) -> str | None:
    return (record.get("tokenizer") or {}).get("fingerprint")


def _code(made_with: Record) -> str:
    dirty = " with changes" if made_with.get("dirty") else ""
    return f"{made_with.get('version')} {_short(made_with.get('commit'))}{dirty}".strip()


def _short(text: str | None) -> str:
    return (text or "")[:12]
