"""Where a run comes from: code, corpus, tokenizer, configuration, environment; kept beside it as lineage.json."""

import hashlib
import platform
import subprocess
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import orjson

import megatron_ko
from megatron_ko.config import RunConfig, dump
from megatron_ko.errors import KoError
from megatron_ko.models.checkpoint_files import write_atomic
from megatron_ko.plan.params import count_parameters

FILE = "lineage.json"


@dataclass(frozen=True)
class Identity:
    """Hashes and versions that name what a run was made with.

    Attributes:
        config_sha256: of the resolved configuration's text.
        tokenizer: fingerprint of the tokenizer.
        versions: package -> version.
    """

    config_sha256: str
    tokenizer: str
    versions: dict[str, str]


def identify(config: RunConfig, tokenizer_fingerprint: str) -> Identity:
    """The identity of this run on this installation."""
    digest = hashlib.sha256(dump(config).encode()).hexdigest()
    return Identity(config_sha256=digest, tokenizer=tokenizer_fingerprint, versions=versions())


def versions() -> dict[str, str]:
    """Versions of what computes: this package, Python, PyTorch, megatron-core, transformers."""
    found = {"megatron_ko": megatron_ko.__version__, "python": platform.python_version()}
    for name in ("torch", "megatron-core", "transformers"):
        try:
            found[name.replace("-", "_")] = version(name)
        except PackageNotFoundError:
            found[name.replace("-", "_")] = "absent"
    return found


def layout_of(config: RunConfig, world_size: int) -> dict[str, int | bool]:
    """Everything about the spread over ranks that decides whether a run continues bit for bit."""
    parallel = config.parallel
    return {
        "world": world_size,
        "tensor": parallel.tensor,
        "pipeline": parallel.pipeline,
        "virtual_pipeline": parallel.virtual_pipeline,
        "context": parallel.context,
        "data": world_size // parallel.model_size,
        "sequence_parallel": parallel.sequence_parallel,
        "distributed_optimizer": parallel.distributed_optimizer,
    }


def write_lineage(config: RunConfig, identity: Identity, corpus: list[dict[str, Any]], session: dict[str, Any]) -> None:
    """Write ``lineage.json``, or add a session to it when the run is continued.

    Args:
        config: the resolved configuration.
        identity: hashes and versions.
        corpus: prefix, sha256, tokens and weight of every source.
        session: layout, world size, device and the step that this session starts from.
    """
    path = config.run.dir / FILE
    now = datetime.now(UTC).isoformat(timespec="seconds")
    previous = _read(path) if path.is_file() else {}
    content = {
        "run": config.run.name,
        "created": previous.get("created", now),
        "code": {"version": megatron_ko.__version__, "commit": _commit()},
        "parameters": count_parameters(config.model).total,
        "tokenizer": {"path": str(config.data.tokenizer), "fingerprint": identity.tokenizer},
        "corpus": corpus,
        "parent": previous.get("parent"),
        "config_sha256": identity.config_sha256,
        "environment": {**identity.versions, "device": session["device"], "world_size": session["layout"]["world"]},
        "sessions": [
            *previous.get("sessions", []),
            {"started": now, "resumed_from_step": session["resumed_from_step"], "layout": session["layout"]},
        ],
    }
    write_atomic(path, orjson.dumps(content, option=orjson.OPT_INDENT_2))


def _read(path: Path) -> dict[str, Any]:
    try:
        return dict(orjson.loads(path.read_bytes()))
    except (ValueError, TypeError) as error:
        remedy = "restore it from a copy, or move it away: the run then starts a new one"
        raise KoError("the lineage of the run is damaged", got=f"{path}: {error}", remedy=remedy) from None


def _commit() -> str | None:
    """The commit of the code when it runs from a clone, else None."""
    folder = Path(megatron_ko.__file__).parent
    try:
        answer = subprocess.run(
            ["git", "-C", str(folder), "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() if answer.returncode == 0 else None
