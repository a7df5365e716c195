"""Profiles a few steps of a run with PyTorch's profiler: writes a trace, a table and a summary."""

import json
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from megatron_ko.config import ProfileConfig
from megatron_ko.log import get_logger
from megatron_ko.parallel.platform import get_platform

# Kind of a kernel by part of its name; the first match applies. On a CPU the names are those of operators.
_KINDS = (
    ("communication", ("nccl", "gloo", "all_reduce", "allgather", "reduce_scatter", "c10d")),
    ("attention", ("flash", "fmha", "attention", "sdpa", "softmax")),
    ("cross entropy", ("cross_entropy",)),
    ("experts", ("permute_kernel", "unpermute", "grouped", "topk")),
    ("matrix products", ("linear", "gemm", "cutlass", "nvjet", "matmul", "::mm", "::bmm", "addmm", "cublas", "xmma")),
    ("norms", ("norm",)),
    ("rotary positions", ("rope", "rotary")),
    ("optimizer", ("adam", "multi_tensor")),
    ("casts and scales", ("cast", "quantize", "amax", "transpose", "scale")),
    ("copies", ("copy", "memcpy", "memset", "fill", "zero_", "cat")),
)
_ROWS = 40
_log = get_logger(__name__)


class StepProfiler:
    """Profiles the configured steps of this session; does nothing on ranks other than 0, or without settings.

    Args:
        directory: ``profile`` of the run.
        settings: which steps; None: none.
    """

    def __init__(self, directory: Path, settings: ProfileConfig | None) -> None:
        self._directory, self._settings = directory, settings
        self._profile: Any = None
        self._started = 0.0
        self._first, self._last, self._written = 0, -1, False

    def begin(self, step: int) -> None:
        """Start profiling if ``step``, the next step, is to be profiled."""
        if self._settings is None or self._profile is not None:
            return
        if not self._settings.start <= step < self._settings.start + self._settings.steps:
            return
        self._first = step
        on_cuda = get_platform().device_type == "cuda"
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_cuda else [])]
        get_platform().synchronize()
        self._profile = profile(activities=activities)
        self._profile.__enter__()
        self._started = time.perf_counter()

    def end(self, step: int) -> None:
        """Stop and write the results if ``step``, which has just ended, is the last step to profile."""
        if self._settings is None or self._profile is None:
            return
        self._last = step
        if step >= self._settings.start + self._settings.steps - 1:
            self._write()

    def close(self) -> None:
        """Write the results so far if the run ended early; warn if no step was profiled."""
        if self._profile is not None and self._last >= self._first:
            self._write()
        elif self._settings is not None and not self._written:
            _log.warning("no profile: the run had no step %d", self._settings.start)

    def _write(self) -> None:
        steps = self._last - self._first + 1
        get_platform().synchronize()
        wall_ms = 1e3 * (time.perf_counter() - self._started)
        self._profile.__exit__(None, None, None)
        self._directory.mkdir(exist_ok=True)
        self._profile.export_chrome_trace(str(self._directory / "trace.json.gz"))
        on_cuda = get_platform().device_type == "cuda"
        order = "self_device_time_total" if on_cuda else "self_cpu_time_total"
        table = self._profile.key_averages().table(sort_by=order, row_limit=_ROWS, max_name_column_width=90)
        (self._directory / "table.txt").write_text(table, encoding="utf-8")
        summary = summarise_events(_work(self._profile.events(), on_cuda), wall_ms, steps)
        (self._directory / "summary.json").write_text(json.dumps(summary, indent=1), encoding="utf-8")
        for line in describe_summary(summary):
            _log.info(line)
        self._profile, self._written = None, True


@dataclass(frozen=True)
class Work:
    """A kernel or operator that ran on the device; times are in microseconds.

    Attributes:
        name: name of the kernel, or of the operator on a CPU.
        begin, end: when it ran.
        own: its time without that of the operators that it called; kernels call none.
    """

    name: str
    begin: float
    end: float
    own: float


def _work(events: Iterable[Any], on_cuda: bool) -> list[Work]:
    """The work on the device: kernels, or operators on a CPU."""
    kind = DeviceType.CUDA if on_cuda else DeviceType.CPU
    return [
        Work(
            event.name,
            event.time_range.start,
            event.time_range.end,
            event.time_range.elapsed_us() if on_cuda else event.self_cpu_time_total,
        )
        for event in events
        if event.device_type == kind
    ]


def summarise_events(work: list[Work], wall_ms: float, steps: int) -> dict[str, Any]:
    """Time of a step by kind, and how long the device was busy (overlapping work counts once in ``device_busy_ms``).

    Args:
        work: the work in the profiled steps.
        wall_ms: their duration.
        steps: number of profiled steps.
    """
    busy, covered = 0.0, float("-inf")
    for item in sorted(work, key=lambda item: item.begin):
        busy += max(0.0, item.end - max(item.begin, covered))
        covered = max(covered, item.end)
    kinds: dict[str, float] = {}
    for item in work:
        kind = kind_of(item.name)
        kinds[kind] = kinds.get(kind, 0.0) + item.own / 1e3 / steps
    return {
        "steps": steps,
        "wall_ms": wall_ms / steps,
        "device_busy_ms": busy / 1e3 / steps,
        "kernels": len(work) // steps,
        "by_kind": dict(sorted(kinds.items(), key=lambda item: -item[1])),
    }


def kind_of(name: str) -> str:
    """The kind of a kernel or operator with this name."""
    lower = name.lower()
    return next((kind for kind, parts in _KINDS if any(part in lower for part in parts)), "elementwise and others")


def describe_summary(summary: dict[str, Any]) -> list[str]:
    """The summary as text lines."""
    busy, wall = summary["device_busy_ms"], summary["wall_ms"]
    kinds = ", ".join(f"{kind} {ms:.1f}" for kind, ms in summary["by_kind"].items())
    return [
        f"profile     device busy {busy:.1f} of {wall:.1f} ms a step, {summary['kernels']:,} kernels",
        f"            ms: {kinds}",
    ]
