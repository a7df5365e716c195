"""Whether a checkpoint and a configuration fit together, and what changed between them."""

from collections.abc import Iterator
from typing import Any

from megatron_ko.config import RunConfig
from megatron_ko.errors import CheckpointError, ConfigError
from megatron_ko.models.checkpoint_files import Manifest

# Another value here makes other weights of it, or a function that the weights were not trained for.
_BOUND = (
    "model.family",
    "model.num_layers",
    "model.hidden_size",
    "model.ffn_hidden_size",
    "model.num_attention_heads",
    "model.num_query_groups",
    "model.head_dim",
    "model.vocab_size",
    "model.rope.theta",
    "model.windows",
    "model.moe.num_experts",
    "model.moe.top_k",
    "model.moe.score",
    "model.moe.softmax_before_topk",
    "model.moe.topk_scale",
    "model.moe.shared_ffn_hidden_size",
    "model.moe.expert_bias",
    "model.norm_eps",
    "model.tie_embeddings",
    "parallel.distributed_optimizer",
    "precision.dtype",
)
_BOUND_SECTIONS = ("model.rope.scaling.",)
# Where a run lies, and what only people see, cannot change a result.
_SILENT = ("run.dir", "run.name", "logging.", "checkpoint.", "launch.", "resilience.")


def is_bound(path: str) -> bool:
    """Whether weights belong to the value at a dotted path."""
    return path in _BOUND or path.startswith(_BOUND_SECTIONS)


def differences(saved: dict[str, Any], present: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Dotted path -> (saved, present) of every value that differs."""
    before, now = dict(_flat(saved)), dict(_flat(present))
    paths = [path for path in {**before, **now} if before.get(path) != now.get(path)]
    return {path: (before.get(path), now.get(path)) for path in paths}


def check_resumable(config: RunConfig, tokenizer: str, manifest: Manifest, versions: dict[str, str]) -> list[str]:
    """Refuse a checkpoint that this configuration or installation cannot continue.

    Returns:
        One line for every other difference, of configuration or software, that can change results.

    Raises:
        ConfigError: the weights do not fit, or their tokenizer was another one.
        CheckpointError: a newer megatron-core wrote it.
    """
    changed = check_bound(config, manifest, tokenizer)
    _check_version(manifest, versions)
    software = differences({"versions": manifest.versions}, {"versions": versions})
    return [
        f"{path}: {old} -> {new}"
        for path, (old, new) in {**changed, **software}.items()
        if not path.startswith(_SILENT) and not is_bound(path)
    ]


def check_bound(config: RunConfig, manifest: Manifest, tokenizer: str | None = None) -> dict[str, tuple[Any, Any]]:
    """Refuse a checkpoint of another model; the tokenizer is compared when it is known.

    Returns:
        What differs and is allowed to.

    Raises:
        ConfigError: the weights do not fit, or their tokenizer was another one.
    """
    changed = differences(manifest.config, config.model_dump(mode="json"))
    refused = [f"{path}: {old} -> {new}" for path, (old, new) in changed.items() if is_bound(path)]
    if tokenizer is not None and manifest.tokenizer != tokenizer:
        refused.append(f"tokenizer fingerprint: {manifest.tokenizer[:16]} -> {tokenizer[:16]}")
    if refused:
        raise ConfigError(
            f"the run directory holds a checkpoint of step {manifest.step} that does not fit this configuration",
            got="; ".join(refused),
            expected="the values that the run was started with",
            remedy="set them back, or choose another run.dir",
        )
    return changed


def _check_version(manifest: Manifest, versions: dict[str, str]) -> None:
    wrote, reads = manifest.versions.get("megatron_core", "0"), versions["megatron_core"]
    if _minor(wrote) > _minor(reads):
        raise CheckpointError(
            "the checkpoint was written by a newer megatron-core, whose format this one cannot read",
            got=f"written by {wrote}, this is {reads}",
            remedy=f"install megatron-core {wrote} (Python 3.12 or newer)",
        )


def _minor(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".")[:2] if part.isdigit())


def _flat(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value
