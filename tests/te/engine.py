"""Running a tiny model in both back ends, in one rank or two. Transformer Engine's kernels "run here" for good."""

import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from cases import Case, Sections
from harness import Outcome, RankOutcome, collect_from_ranks, merge, tiny_config, train_rank
from stub.extension import CALLS
from stub.loading import CAPABILITY, NAME, let_collectives_run_one_by_one
from transformer_engine.pytorch.quantization import FP8GlobalStateManager

from megatron_ko.config import RunConfig
from megatron_ko.parallel.groups import destroy
from megatron_ko.parallel.platform import Platform, get_platform

_kernels_run_here = True


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
    optim = sections.pop("optim", {})
    training = {"global_batch_size": 4, **sections.pop("training", {})}
    config = tiny_config(sections.pop("parallel", {}), **sections, training=training)
    if optim:
        config = RunConfig.model_validate(config.model_dump() | {"optim": config.optim.model_dump() | optim})
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
            "optim": config.optim.model_copy(update={"offload": 0.0}),
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


def forget() -> None:
    """What Transformer Engine keeps from model to model in a process."""
    FP8GlobalStateManager.reset()
    CALLS.clear()


def _run(case: Case, steps: int) -> _Rank:
    config = config_of(case.sections)
    forget()
    engine = train_rank(config, steps)
    calls = dict(CALLS)
    forget()
    with without_kernels():
        other = train_rank(portable(config, case.sections.get("precision", {}).get("mxfp8") is not None), steps)
    return _Rank(engine, other, calls)


def _run_all(cases: dict[str, Case], steps: int, alone: bool) -> dict[str, _Rank | str]:
    """Inside a rank. A case that fails alone is told by its test; one that fails among others ends all of them."""
    results: dict[str, _Rank | str] = {}
    for name, case in cases.items():
        began = time.monotonic()
        try:
            results[name] = _run(case, steps)
        except Exception:
            if not alone:
                print(f"the case that failed: {name}", file=sys.stderr)
                raise
            results[name] = traceback.format_exc()
            destroy()
        print(f"{time.monotonic() - began:5.1f} s {name}", file=sys.stderr)
    return results


def run_both(cases: dict[str, Case], world_size: int, steps: int) -> dict[str, Both | str]:
    """All cases in fresh ranks: what came out, or the traceback of what went wrong."""
    ranks = collect_from_ranks(partial(_run_all, cases), world_size, steps, world_size == 1)
    results: dict[str, Both | str] = {}
    for name in cases:
        parts = [rank[name] for rank in ranks]
        failed = next((part for part in parts if isinstance(part, str)), None)
        results[name] = failed or Both(
            merge([part.engine for part in parts]), merge([part.portable for part in parts]), parts[0].calls
        )
    return results


def differences(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> dict[str, float]:
    """Norm of the difference over the norm of the second, by name."""
    assert one.keys() == other.keys()
    return {
        key: float((one[key] - tensor).norm() / tensor.norm().clamp(min=1e-12))
        for key, tensor in other.items()
        if not key.endswith("expert_bias")
    }
