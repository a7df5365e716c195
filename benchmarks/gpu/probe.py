"""The environment, the speed of attention under every kernel, and Transformer Engine's modules against PyTorch.

A cuDNN that is not PyTorch's, or attention without a fused kernel, shows here before anything is measured.
"""

import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from gpu.step_options import Given, given
from megatron_ko.models.precision import transformer_engine_release
from megatron_ko.parallel.platform import get_platform

PACKAGES = ("torch", "megatron-core", "transformer-engine", "transformers", "liger-kernel", "triton", "numpy")
ATTENTION_LIMIT = 1e-2


@dataclass(frozen=True)
class Shape:
    """Of attention: batch, length, heads, key/value heads, width."""

    b: int
    s: int
    n: int
    g: int
    d: int

    @property
    def flops(self) -> float:
        """Forward and backward, causal."""
        return 4 * self.b * self.n * self.s * self.s * self.d / 2 * 3.5


FULL, TOY = Shape(4, 4096, 24, 8, 128), Shape(1, 64, 4, 2, 16)


def main() -> None:
    step = given()
    result: dict[str, Any] = {"environment": environment()}
    step.tell(result)
    result["attention"] = list(attention(step))
    step.tell(result)
    if step.device == "cuda" and transformer_engine_release():
        from gpu.engine_modules import differences

        result["modules"] = list(differences())
        step.tell(result)
    print(result)
    wrong = [row for part in ("attention", "modules") for row in result.get(part, []) if row.get("problem")]
    sys.exit(1 if wrong else 0)


def environment() -> dict[str, Any]:
    """Device, driver, versions: what a figure is worth nothing without."""
    device = get_platform()
    return {
        "device": device.device_name,
        "backend": device.backend,
        "memory_gib": torch.cuda.get_device_properties(0).total_memory / 2**30
        if device.device_type == "cuda"
        else None,
        "driver": driver() if device.device_type == "cuda" else None,
        "python": platform.python_version(),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "packages": {name: installed for name in PACKAGES if (installed := release_of(name))},
    }


def release_of(package: str) -> str | None:
    """Installed release of a package."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def driver() -> str:
    """Release of the driver."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.strip()


def attention(step: Given) -> Iterator[dict[str, Any]]:
    """Time of forward and backward, and the difference of the output to PyTorch's first kernel."""
    on_cuda = step.device == "cuda"
    shape = FULL if on_cuda else TOY
    query, key, value = inputs(shape, step.device)
    gradient = torch.randn(shape.s, shape.b, shape.n * shape.d, device=step.device, dtype=torch.bfloat16)
    kernels = pytorch_kernels(shape, on_cuda) | (
        engine_kernels(shape) if on_cuda and transformer_engine_release() else {}
    )
    reference: Tensor | None = None
    for name, kernel in kernels.items():
        try:
            output = kernel(query, key, value)
            reference = output.detach() if reference is None else reference
            seconds = timed(
                lambda kernel=kernel: torch.autograd.grad(kernel(query, key, value), (query, key, value), gradient)
            )
        except Exception as error:  # a kernel that is missing is a finding, and the others are still of interest
            yield {"kernel": name, "problem": f"{type(error).__name__}: {str(error)[:300]}"}
            continue
        found = relative(output, reference)
        problem = "" if found <= ATTENTION_LIMIT else "too far from PyTorch's"
        yield {
            "kernel": name, "ms": 1e3 * seconds, "tflops": shape.flops / seconds / 1e12, "difference": found,
            "problem": problem,
        }  # fmt: skip


def inputs(shape: Shape, device: str) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key and value, [s, b, n or g, d]."""
    query, key, value = (
        torch.randn(shape.s, shape.b, heads, shape.d, device=device, dtype=torch.bfloat16, requires_grad=True)
        for heads in (shape.n, shape.g, shape.g)
    )
    return query, key, value


def pytorch_kernels(shape: Shape, on_cuda: bool) -> Mapping[str, Callable[..., Tensor]]:
    """PyTorch's attention under one kernel each."""

    def under(backend: SDPBackend) -> Callable[..., Tensor]:
        def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            with sdpa_kernel(backend):
                heads = (part.permute(1, 2, 0, 3) for part in (query, key, value))  # [b, n, s, d]
                output = F.scaled_dot_product_attention(*heads, is_causal=True, enable_gqa=True)
            return output.permute(2, 0, 1, 3).reshape(shape.s, shape.b, -1)

        return attend

    if not on_cuda:
        return {"PyTorch": under(SDPBackend.MATH)}
    return {"PyTorch flash": under(SDPBackend.FLASH_ATTENTION), "PyTorch cuDNN": under(SDPBackend.CUDNN_ATTENTION)}


def engine_kernels(shape: Shape) -> dict[str, Callable[..., Tensor]]:
    """Transformer Engine's attention; its fused kernels only, so that a missing one is an error."""
    from gpu.engine_modules import fused_attention

    return {"Transformer Engine fused": fused_attention(shape.n, shape.g, shape.d)}


def timed(work: Callable[[], object]) -> float:
    """Seconds of one call, of ten after three."""
    for _ in range(3):
        work()
    get_platform().synchronize()
    started = time.perf_counter()
    for _ in range(10):
        work()
    get_platform().synchronize()
    return (time.perf_counter() - started) / 10


def relative(found: Tensor, expected: Tensor) -> float:
    """Relative difference in norm."""
    return float((found.float() - expected.float()).norm() / expected.float().norm())


if __name__ == "__main__":
    main()
