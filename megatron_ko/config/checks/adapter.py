"""Checks whether adapters have something to start with, and fit the layers and the other options."""

from collections.abc import Iterator

from megatron_ko.config.adapter import FEED_FORWARD
from megatron_ko.config.problems import Problem
from megatron_ko.config.run import RunConfig

_EXPERT_RANKS = 8  # 16 bytes of two each


def check_adapter(config: RunConfig) -> Iterator[Problem]:
    """Report what adapters cannot do."""
    adapter, moe, parallel = config.adapter, config.model.moe, config.parallel
    if adapter is None:
        return
    if config.checkpoint.start_from is None:
        yield Problem(
            path="checkpoint.start_from",
            got=None,
            expected="the model that the adapters are added to",
            remedy="checkpoint.start_from=DIR, a native model or a run",
        )
    unique = list(dict.fromkeys(adapter.targets))
    if len(unique) < len(adapter.targets):
        yield Problem(
            path="adapter.targets",
            got=list(adapter.targets),
            expected="each layer once",
            remedy=f"adapter.targets=[{', '.join(unique)}]",
        )
    if moe is not None and any(target in FEED_FORWARD for target in unique):
        yield from _check_experts(config)
    if config.precision.recipe != "none":
        yield Problem(
            path="precision.recipe",
            got=config.precision.recipe,
            expected="none: adapters are computed in precision.dtype only",
            remedy="precision.recipe=none",
        )
    for name in ("overlap_tensor", "overlap_experts"):
        if getattr(parallel, name):
            yield Problem(
                path=f"parallel.{name}", got=True, expected="false with adapters", remedy=f"parallel.{name}=false"
            )


def _check_experts(config: RunConfig) -> Iterator[Problem]:
    """Experts may have adapters if each is whole on its rank."""
    adapter, moe, parallel = config.adapter, config.model.moe, config.parallel
    assert adapter is not None and moe is not None
    if adapter.kind == "dora":
        yield Problem(
            path="adapter.kind",
            got="dora",
            expected="lora for fc1 and fc2 of experts",
            remedy="adapter.kind=lora, or adapter.targets=[qkv, proj]",
        )
    if adapter.rank % _EXPERT_RANKS:
        yield Problem(
            path="adapter.rank",
            got=adapter.rank,
            expected=f"a multiple of {_EXPERT_RANKS} for experts: the grouped product of a GPU takes no other width",
            remedy=f"adapter.rank={-(-adapter.rank // _EXPERT_RANKS) * _EXPERT_RANKS}",
        )
    if parallel.expert_tensor_size > 1:
        yield Problem(
            path="parallel.expert_tensor",
            got=parallel.expert_tensor_size,
            expected="1 with adapters of experts: fc1 and fc2",
            remedy="parallel.expert_tensor=1, or adapter.targets=[qkv, proj]",
        )
    if moe.shared_ffn_hidden_size:
        yield Problem(
            path="adapter.targets",
            got=list(adapter.targets),
            expected="layers of attention only: a shared expert has no adapter",
            remedy="adapter.targets=[qkv, proj]",
        )
