"""The lineage of a run: code, corpus, tokenizer, configuration, environment; kept in its folder as lineage.json."""

import hashlib
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import orjson

import megatron_ko
from megatron_ko.artifacts import lineage
from megatron_ko.artifacts.checkpoints import Manifest
from megatron_ko.artifacts.native import find_pretrained, weights_of
from megatron_ko.config import RunConfig, dump
from megatron_ko.data.training.sources import CorpusEntry
from megatron_ko.errors import KoError
from megatron_ko.log import get_logger
from megatron_ko.plan.params import count_parameters
from megatron_ko.train.start import start_step

_log = get_logger(__name__)


@dataclass(frozen=True)
class Identity:
    """Hashes and versions that identify what a run was made with.

    Attributes:
        config_sha256: hash of the text of the resolved configuration.
        tokenizer: fingerprint of the tokenizer.
        versions: package -> version.
    """

    config_sha256: str
    tokenizer: str
    versions: dict[str, str]


def identify(config: RunConfig, tokenizer_fingerprint: str) -> Identity:
    """The identity of this run with this installation."""
    digest = hashlib.sha256(dump(config).encode()).hexdigest()
    return Identity(config_sha256=digest, tokenizer=tokenizer_fingerprint, versions=versions())


def versions() -> dict[str, str]:
    """Versions of this package, Python, PyTorch, megatron-core and transformers."""
    found = {"megatron_ko": megatron_ko.__version__, "python": platform.python_version()}
    for name in ("torch", "megatron-core", "transformers"):
        try:
            found[name.replace("-", "_")] = version(name)
        except PackageNotFoundError:
            found[name.replace("-", "_")] = "absent"
    return found


def layout_of(config: RunConfig, world_size: int) -> dict[str, int | bool]:
    """The parts of the parallel layout that must be equal for a run to continue bit for bit."""
    parallel = config.parallel
    return {
        "world": world_size,
        "tensor": parallel.tensor,
        "pipeline": parallel.pipeline,
        "virtual_pipeline": parallel.virtual_pipeline,
        "context": parallel.context,
        "expert": parallel.expert,
        "expert_tensor": parallel.expert_tensor_size,
        "data": world_size // parallel.model_size,
        "sequence_parallel": parallel.sequence_parallel,
        "distributed_optimizer": parallel.distributed_optimizer,
    }


def write_lineage(
    config: RunConfig,
    identity: Identity,
    corpus: list[CorpusEntry],
    session: dict[str, Any],
    epochs: Mapping[str, float] | None = None,
) -> None:
    """Write ``lineage.json``, or add a session to it if the run is continued, and log changes of the corpus.

    Args:
        config: the resolved configuration.
        identity: hashes and versions.
        corpus: prefix, sha256, tokens and weight of every source.
        session: layout, world size, device and the step that this session starts from.
        epochs: how often each source is read in the whole run, by its name.
    """
    path = config.run.dir / lineage.FILE
    now, code = lineage.now(), lineage.code()
    previous = _read(path) if path.is_file() else {}
    if session["resumed_from_step"]:
        for line in _corpus_changes(previous.get("corpus", []), corpus):
            _log.warning("changed since the run was last started: %s", line)
    content = {
        "run": config.run.name,
        "created": previous.get("created", now),
        "code": code,
        "parameters": count_parameters(config.model).total,
        "tokenizer": {"path": str(config.data.tokenizer), "fingerprint": identity.tokenizer},
        "corpus": corpus,
        **({"epochs": {name: round(count, 3) for name, count in epochs.items()}} if epochs else {}),
        **({"checkpoint": previous["checkpoint"]} if "checkpoint" in previous else {}),
        "parents": previous["parents"] if previous else _start(config),
        "config_sha256": identity.config_sha256,
        "environment": {**identity.versions, "device": session["device"], "world_size": session["layout"]["world"]},
        "sessions": [
            *previous.get("sessions", []),
            {
                "started": now,
                "resumed_from_step": session["resumed_from_step"],
                "layout": session["layout"],
                "code": code,
                "corpus_sha256": [source["sha256"] for source in corpus],
            },
        ],
    }
    lineage.write(config.run.dir, content)


def record_checkpoint(directory: Path, manifest: Manifest) -> None:
    """Record the newest checkpoint of a run, and the hash of its weights, in the run's lineage."""
    try:
        record = lineage.read(directory)
    except KoError as error:
        _log.warning("the lineage does not name the checkpoint of step %d: %s", manifest.step, error)
        return
    if record is not None:
        saved = {"step": manifest.step, "tokens": manifest.tokens, "weights": weights_of(manifest)}
        lineage.write(directory, {**record, "checkpoint": saved})


def _start(config: RunConfig) -> list[lineage.Record]:
    """The model whose weights the run starts with."""
    if config.checkpoint.start_from is None:
        return []
    return [find_pretrained(config.checkpoint.start_from, start_step(config)).ancestor()]


def _corpus_changes(before: list[CorpusEntry], now: list[CorpusEntry]) -> list[str]:
    """One line for every source that is new, gone or changed; where it is stored does not matter."""
    known, found = ({source["sha256"]: source for source in sources} for sources in (before, now))
    lines = [f"no longer read: {_source(known[digest])}" for digest in known if digest not in found]
    lines += [f"new: {_source(found[digest])}" for digest in found if digest not in known]
    return lines


def _source(source: CorpusEntry) -> str:
    return f"{source['prefix']}, {source['tokens']:,} tokens, sha256 {source['sha256'][:16]}"


def _read(path: Path) -> dict[str, Any]:
    """An earlier lineage, with the parts that are kept converted to the current format."""
    try:
        content: dict[str, Any] = {**orjson.loads(path.read_bytes())}
        content["parents"] = list(content.get("parents", []))
        content["sessions"] = [dict(session) for session in content.get("sessions", [])]
        content["corpus"] = [
            {name: source[name] for name in ("prefix", "sha256", "tokens", "weight")}
            for source in content.get("corpus", [])
        ]
    except (ValueError, TypeError, KeyError) as error:
        remedy = "restore it from a copy, or move it away: the run then starts a new one"
        raise KoError("the lineage of the run is damaged", got=f"{path}: {error!r}", remedy=remedy) from None
    return content
