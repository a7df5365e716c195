"""What `make gpu-check` runs: one list, the most important first, every step with its own limit in seconds."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import product
from typing import Any


@dataclass(frozen=True)
class Step:
    """One process.

    Attributes:
        name: what the table and ``--only`` call it.
        module: ``python -m gpu.MODULE``.
        limit_s: it is stopped after that long.
        needs_s: it is not begun with less time left.
        options: what the module is told, as JSON.
        beside: runs at the same time as its neighbours that say so too; nothing in it is timed.
    """

    name: str
    module: str
    limit_s: float
    needs_s: float
    options: dict[str, Any] = field(default_factory=dict)
    beside: bool = False


@dataclass(frozen=True)
class Network:
    """A network whose throughput is measured.

    Attributes:
        model: name in configs/models.
        micro_batch: sequences that are computed at a time.
        words: values laid over the run, to cut it to what one device holds.
        length: tokens of a sequence.
    """

    model: str
    micro_batch: int
    words: tuple[str, ...] = ()
    length: int = 4096


@dataclass(frozen=True)
class Goal:
    """What a step is to reach: a share of the device's bf16 peak, and a multiple of another step's tokens/s."""

    step: str
    peak_share: float
    times: float | None = None
    other: str | None = None


# Cut to about three billion parameters, whose training state fills 55 of the 141 GiB of an H200.
NETWORKS = {
    "frankenstallm-3b": Network("frankenstallm-3b", micro_batch=4),
    "keural-4-layers": Network(
        "keural-15b", micro_batch=2, words=("model.num_layers=4", "model.windows=[512,null,512,null]")
    ),
    "ko-1b": Network("ko-1b", micro_batch=8),
    "ko-moe-6-layers": Network("ko-moe-15b-a3b", micro_batch=2, words=("model.num_layers=6",)),
}
RECIPES = {
    "bf16": (),
    "fp8_current": ("precision.recipe=fp8_current",),
    "fp8_blockwise": ("precision.recipe=fp8_blockwise",),
    "fp8_delayed": ("precision.recipe=fp8_delayed",),
}
PEERS = ("transformers", "transformers+liger")
WARM_UP = 5  # steps that are not counted: compilation, and the caching allocator
PROFILED = ("bf16", "fp8_current")  # two of their steps go through the profiler and are not counted either
GOALS = (
    Goal("frankenstallm-3b bf16", 0.55, 1.3, "frankenstallm-3b transformers"),
    Goal("frankenstallm-3b fp8_current", 0.72, 1.75, "frankenstallm-3b transformers"),
    Goal("keural-4-layers bf16", 0.40),
)


def ours(network: str, recipe: str, accumulate: int = 1) -> Step:
    """`megatron-ko train` for a few steps; nothing is saved."""
    profile = recipe in PROFILED and accumulate == 1
    options = {
        "way": "train",
        "network": network,
        "words": [*NETWORKS[network].words, *RECIPES[recipe]],
        "steps": 15 if profile else 12 if accumulate == 1 else 9,
        "accumulate": accumulate,
        "profile": profile,
    }
    suffix = f" x{accumulate}" if accumulate > 1 else ""
    return Step(f"{network} {recipe}{suffix}", "throughput", limit_s=130, needs_s=55, options=options)


def peer(network: str, way: str) -> Step:
    """transformers under torch.compile; most of its time is compilation."""
    options = {"way": way, "network": network, "words": [*NETWORKS[network].words], "steps": 12}
    return Step(f"{network} {way}", "throughput", limit_s=180, needs_s=110, options=options)


FIRST = (
    Step("environment", "probe", limit_s=90, needs_s=20),
    ours("frankenstallm-3b", "bf16"),
    ours("frankenstallm-3b", "fp8_current"),
    peer("frankenstallm-3b", "transformers"),
    Step(
        "small cases",
        "compare",
        limit_s=240,
        needs_s=60,
        options={"workers": 5, "cpu_workers": 2, "threads": 2},
        beside=True,
    ),
    Step("tests/gpu", "suite", limit_s=180, needs_s=60, options={"workers": 6}, beside=True),
    ours("keural-4-layers", "bf16"),
    peer("frankenstallm-3b", "transformers+liger"),
    ours("frankenstallm-3b", "bf16", accumulate=4),
    ours("frankenstallm-3b", "fp8_current", accumulate=4),
    ours("ko-moe-6-layers", "bf16"),
    ours("frankenstallm-3b", "fp8_blockwise"),
    Step("save and generate", "aftermath", limit_s=150, needs_s=70, options={"model": "ko-1b", "new_tokens": 64}),
    peer("keural-4-layers", "transformers"),
    ours("ko-1b", "bf16"),
    peer("ko-1b", "transformers"),
    ours("ko-1b", "fp8_current"),
    ours("frankenstallm-3b", "fp8_delayed"),
    ours("keural-4-layers", "fp8_current"),
    ours("ko-moe-6-layers", "fp8_current"),
    peer("ko-moe-6-layers", "transformers"),
)


def on_cuda() -> list[Step]:
    """Every step: those above, then each network with each recipe, one and four accumulations, and its peers."""
    return list({step.name: step for step in (*FIRST, *_rest())}.values())


def _rest() -> Iterator[Step]:
    for network, way in product(NETWORKS, PEERS):
        yield peer(network, way)
    for accumulate, network, recipe in product((1, 4), NETWORKS, RECIPES):
        yield ours(network, recipe, accumulate)


TOY = {"model": "demo-tiny", "length": 64, "micro_batch": 2}


def on_cpu() -> list[Step]:
    """A step of every kind on a toy: that it works is all that its figures say."""
    words = ["precision.dtype=fp32"]
    train = {"way": "train", "words": words, "steps": 10, "accumulate": 1, "profile": True, **TOY}
    other = {"way": "transformers", "words": words, "steps": 7, **TOY}
    return [
        Step("environment", "probe", limit_s=60, needs_s=5),
        Step("toy bf16", "throughput", limit_s=90, needs_s=5, options=train),
        Step("toy transformers", "throughput", limit_s=90, needs_s=5, options=other),
        Step("small cases", "compare", limit_s=120, needs_s=5, options={"workers": 1, "cpu_workers": 1}, beside=True),
        Step("tests/gpu", "suite", limit_s=120, needs_s=5, options={"workers": 0}, beside=True),
        Step("save and generate", "aftermath", limit_s=90, needs_s=5, options={"new_tokens": 8, **TOY}),
    ]


def chosen(device: str, only: list[str]) -> list[Step]:
    """The steps of a device whose names contain one of ``only``; all without it."""
    steps = on_cuda() if device == "cuda" else on_cpu()
    return [step for step in steps if not only or any(part in step.name for part in only)]


def together(steps: list[Step]) -> list[list[Step]]:
    """Steps in groups that run at the same time."""
    groups: list[list[Step]] = []
    for step in steps:
        if step.beside and groups and groups[-1][-1].beside:
            groups[-1].append(step)
        else:
            groups.append([step])
    return groups
