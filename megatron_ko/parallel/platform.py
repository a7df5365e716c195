"""Chooses between CUDA with NCCL and CPU with gloo; no other module does."""

import os
import platform
import resource
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import psutil
import torch

from megatron_ko.errors import LaunchError
from megatron_ko.machine.device import device_type
from megatron_ko.parallel import cpu_compat
from megatron_ko.parallel.host_memory import keep_freed_memory

# Dense peaks in FLOP/s by part of the device name, from the vendor's data sheets, without structured sparsity.
_PEAKS: dict[str, dict[str, float]] = {
    "B200": {"bf16": 2250e12, "fp16": 2250e12, "fp8": 4500e12},
    "H200": {"bf16": 989e12, "fp16": 989e12, "fp8": 1979e12},
    "H100": {"bf16": 989e12, "fp16": 989e12, "fp8": 1979e12},
    "A100": {"bf16": 312e12, "fp16": 312e12},
}

_ALLOCATIONS = 200_000  # kept for a snapshot: a few steps of a model with 80 layers


@dataclass(frozen=True)
class MemoryUse:
    """Memory of this process in bytes.

    Attributes:
        allocated_peak: peak memory of tensors (CUDA), or the largest resident set so far (CPU).
        reserved: memory that the caching allocator holds (CUDA), or the current resident set (CPU).
    """

    allocated_peak: int
    reserved: int


@dataclass(frozen=True)
class Platform:
    """The device of this process.

    Attributes:
        device_type: kind of device.
        backend: the torch.distributed back end for it.
    """

    device_type: Literal["cuda", "cpu"]
    backend: Literal["nccl", "gloo"]

    @property
    def device(self) -> torch.device:
        """The device of this rank; on CUDA the one chosen by ``select``."""
        if self.device_type == "cuda":
            return torch.device("cuda", torch.cuda.current_device())
        return torch.device("cpu")

    @property
    def device_name(self) -> str:
        """Name of the device, as reported by its driver or the operating system."""
        return torch.cuda.get_device_name() if self.device_type == "cuda" else _cpu_name()

    @property
    def device_count(self) -> int:
        """Accelerators of this machine; 0 on a CPU."""
        return torch.cuda.device_count() if self.device_type == "cuda" else 0

    @property
    def total_memory(self) -> int | None:
        """Bytes of memory of the GPU; None on a CPU."""
        return int(torch.cuda.get_device_properties().total_memory) if self.device_type == "cuda" else None

    @property
    def may_fork(self) -> bool:
        """Whether a rank may be forked from a process that has imported megatron-core: CUDA does not survive a fork."""
        return self.device_type == "cpu"

    @property
    def compute_capability(self) -> tuple[int, int] | None:
        """CUDA compute capability of the GPU, (9, 0) for Hopper; None on a CPU."""
        return torch.cuda.get_device_capability() if self.device_type == "cuda" else None

    @property
    def runs_fused_kernels(self) -> bool:
        """Whether kernels of Transformer Engine and apex can run here."""
        return self.device_type == "cuda"

    @property
    def compiles_kernels(self) -> bool:
        """Whether PyTorch's compiler is used for attention; on a CPU it takes longer than it saves."""
        return self.device_type == "cuda"

    @property
    def keeps_queued_sends(self) -> bool:
        """Whether a tensor may be freed as soon as its send is queued: NCCL keeps it alive, gloo reads it later."""
        return self.backend == "nccl"

    def select(self, local_rank: int) -> None:
        """Use the device of a local rank in this process.

        Raises:
            LaunchError: this machine has fewer devices.
        """
        if self.device_type == "cpu":
            keep_freed_memory()
            return
        if local_rank >= self.device_count:
            raise LaunchError(
                "more ranks than GPUs on this machine",
                got=f"local rank {local_rank}",
                expected=f"at most {self.device_count} ranks",
                remedy="lower launch.ranks_per_node, or set MEGATRON_KO_DEVICE=cpu",
            )
        torch.cuda.set_device(local_rank)

    def memory(self) -> MemoryUse:
        """Current memory use of this process."""
        if self.device_type == "cuda":
            return MemoryUse(torch.cuda.max_memory_allocated(), torch.cuda.memory_reserved())
        unit = 1 if sys.platform == "darwin" else 1024
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
        resident = psutil.Process().memory_info().rss
        return MemoryUse(max(peak, resident), resident)  # the kernel updates its maximum with a delay

    def reset_peak(self) -> None:
        """Reset the peak on CUDA. On a CPU it cannot be reset: the kernel keeps it for the life of the process."""
        if self.device_type == "cuda":
            torch.cuda.reset_peak_memory_stats()

    def memory_summary(self) -> str:
        """PyTorch's table of the memory that the caching allocator holds; empty on a CPU."""
        return torch.cuda.memory_summary() if self.device_type == "cuda" else ""

    def record_allocations(self) -> None:
        """Record from now on where each GPU allocation is made."""
        if self.device_type == "cuda":
            torch.cuda.memory._record_memory_history(max_entries=_ALLOCATIONS)

    def dump_allocations(self, path: Path) -> None:
        """Write the recorded allocations, for pytorch.org/memory_viz."""
        if self.device_type == "cuda":
            torch.cuda.memory._dump_snapshot(str(path))

    def synchronize(self) -> None:
        """Wait until the device has finished all queued work; on a CPU nothing is queued."""
        if self.device_type == "cuda":
            torch.cuda.synchronize()

    def peak_flops(self, dtype: str) -> float | None:
        """Dense peak of the device in FLOP/s for "bf16", "fp16" or "fp8"; None if it is unknown."""
        name = self.device_name
        return next((peaks.get(dtype) for part, peaks in _PEAKS.items() if part in name), None)


@cache
def get_platform() -> Platform:
    """CUDA if there is a device, unless MEGATRON_KO_DEVICE=cpu. On a CPU, megatron-core is patched to run on it.

    Raises:
        LaunchError: MEGATRON_KO_DEVICE has an unknown value, or requests a device that does not exist.
    """
    wanted = os.environ.get("MEGATRON_KO_DEVICE", "")
    if wanted not in ("", "cpu", "cuda"):
        raise LaunchError("unknown device in MEGATRON_KO_DEVICE", got=wanted, expected="cpu or cuda")
    if "cuda" in (wanted, device_type()):
        if not torch.cuda.is_available():
            raise LaunchError(
                "PyTorch finds no CUDA device",
                got="MEGATRON_KO_DEVICE=cuda" if wanted else "a GPU that the driver reports",
                expected="a driver that is new enough for this PyTorch, or a PyTorch built for CUDA",
                remedy="set MEGATRON_KO_DEVICE=cpu to run without a GPU",
            )
        return Platform("cuda", "nccl")
    cpu_compat.install()
    return Platform("cpu", "gloo")


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or "CPU"
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "CPU")
