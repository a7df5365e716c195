"""Checks whether adapters have something to start with, and fit the layers and the other options."""

from collections.abc import Iterator

from megatron_ko.config.adapter import FEED_FORWARD
from megatron_ko.config.problems import Problem
from megatron_ko.config.run import RunConfig


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
    if moe is not None and (wrong := [target for target in unique if target in FEED_FORWARD]):
        left = [target for target in unique if target not in FEED_FORWARD]
        yield Problem(
            path="adapter.targets",
            got=wrong,
            expected="layers of attention only: experts have no adapters",
            remedy=f"adapter.targets=[{', '.join(left or ['qkv', 'proj'])}]",
        )
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
