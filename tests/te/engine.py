"""Running a tiny model in both back ends, in one rank or two. Transformer Engine's kernels "run here" for good."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from cases import Case, Sections
from harness import Outcome, RankOutcome, collect_from_ranks, merge, tiny_config, train_rank
from stub.cross_entropy import interpreted
from stub.extension import CALLS
from stub.loading import CAPABILITY, NAME, let_collectives_run_one_by_one
from transformer_engine.pytorch.quantization import FP8GlobalStateManager

from megatron_ko.config import RunConfig
from megatron_ko.models import build
from megatron_ko.parallel.platform import Platform, get_platform

_kernels_run_here = True


def kernels_run_here() -> bool:
    """Whether this process is a machine with a GPU just now."""
    return _kernels_run_here


def _pretend() -> None:
    get_platform()  # before the answers below, so that it is a CPU
    torch.cuda.is_available = lambda: True  # Transformer Engine asks when a module is made
    for name, answer in (
        ("runs_fused_kernels", lambda _: _kernels_run_here),
        ("compute_capability", lambda _: CAPABILITY),
        ("device_name", lambda _: NAME),
    ):
        setattr(Platform, name, property(answer))
    let_collectives_run_one_by_one()


_pretend()


@contextmanager
def without_kernels() -> Iterator[None]:
    """While inside, this is a machine without a GPU."""
    global _kernels_run_here
    _kernels_run_here = False
    try:
        yield
    finally:
        _kernels_run_here = True


def config_of(sections: Sections) -> RunConfig:
    """A tiny model for Transformer Engine's layers; emulated MXFP8 becomes their own."""
    sections = dict(sections)
    training = {"global_batch_size": 4, **sections.pop("training", {})}
    config = tiny_config(sections.pop("parallel", {}), **sections, training=training)
    return with_precision(config, mxfp8=config.precision.mxfp8.model_copy(update={"emulate": False}))


def with_precision(config: RunConfig, **fields: Any) -> RunConfig:
    """Another precision, unchecked: a check would refuse recipes in fp32."""
    return config.model_copy(update={"precision": config.precision.model_copy(update=fields)})


def portable(config: RunConfig, emulate: bool = False) -> RunConfig:
    """The same run with portable layers: with the emulated recipe, or without any."""
    others: dict[str, Any] = {"recipe": "none", "first_layers_high": 0, "last_layers_high": 0}
    if emulate:
        others = {"mxfp8": config.precision.mxfp8.model_copy(update={"emulate": True})}
    config = with_precision(config, backend="portable", fp8_weights=False, **others)
    return config.model_copy(
        update={
            "training": config.training.model_copy(update={"offload_layers": 0}),
            "parallel": config.parallel.model_copy(update={"context_exchange": "all_gather"}),
        }
    )


@dataclass(frozen=True)
class Both:
    """A case in both back ends.

    Attributes:
        engine: with Transformer Engine's layers.
        portable: with ours.
        calls: kernels that Transformer Engine called on the first rank, and how often.
    """

    engine: Outcome
    portable: Outcome
    calls: dict[str, int]


@dataclass(frozen=True)
class _Rank:
    engine: RankOutcome
    portable: RankOutcome
    calls: dict[str, int]


def _run(case: Case, steps: int) -> _Rank:
    """Inside a rank."""
    config, emulate = config_of(case.sections), "mxfp8" in case.sections.get("precision", {})
    if emulate:  # the same loss in both: another order of sums would round a value to the other side here and there
        build.uses_transformer_engine = lambda backend: False
    with interpreted(case.interpreted):
        engine = train_rank(config, steps)
    calls = dict(CALLS)
    FP8GlobalStateManager.reset()
    with without_kernels():
        other = train_rank(portable(config, emulate), steps)
    return _Rank(engine, other, calls)


def run_both(case: Case, world_size: int = 1, steps: int = 1) -> Both:
    """A case in fresh ranks: what threads and groups a world leaves behind would slow down the next one."""
    ranks = collect_from_ranks(_run, world_size, case, steps)
    return Both(merge([rank.engine for rank in ranks]), merge([rank.portable for rank in ranks]), ranks[0].calls)


def differences(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> dict[str, float]:
    """Norm of the difference over the norm of the second, by name."""
    assert one.keys() == other.keys()
    return {
        key: float((one[key] - tensor).norm() / tensor.norm().clamp(min=1e-12))
        for key, tensor in other.items()
        if not key.endswith("expert_bias")
    }


def assert_alike(case: Case, world_size: int, steps: int) -> None:
    """Losses and gradient norms of all steps, and the gradients of the first, are apart by what the case allows."""
    both = run_both(case, world_size, steps)
    apart = differences(both.engine.gradients, both.portable.gradients)
    worst = max(apart, key=lambda key: apart[key])
    losses = [abs(one / other - 1) for one, other in zip(both.engine.losses, both.portable.losses, strict=True)]
    print(f"gradients apart by {min(apart.values()):.1e} to {apart[worst]:.1e} ({worst}), losses by {max(losses):.1e}")
    assert apart[worst] < case.gradients, worst
    assert min(apart.values()) >= case.least
    assert max(losses) < case.losses
    norms = [one / other for one, other in zip(both.engine.grad_norms, both.portable.grad_norms, strict=True)]
    assert norms == pytest.approx([1.0] * len(norms), abs=max(10 * case.losses, 5e-5))
    assert set(case.calls) <= both.calls.keys(), both.calls
    assert not set(case.never) & both.calls.keys()
