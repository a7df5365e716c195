"""Which kind of device this process computes on: decided before megatron-core and Transformer Engine are imported.

Both look around when they are imported. megatron-core asks CUDA whether it is there, after which no process may be
forked that uses it; Transformer Engine loads the first cuDNN that it finds; and where the package is installed,
megatron-core computes with its CUDA kernels even on a CPU.
"""

import importlib.machinery
import importlib.util
import os
import sys
from functools import cache
from typing import Literal

import pynvml

# Transformer Engine and its compiled extension, which megatron-core imports by name, too.
_ENGINE = ("transformer_engine", "transformer_engine_torch")


# What CUDA_VISIBLE_DEVICES says where no device is to be seen.
_NONE_VISIBLE = ("", "-1", "NoDevFiles")


@cache
def device_type() -> Literal["cuda", "cpu"]:
    """CUDA when the driver knows a GPU, or what MEGATRON_KO_DEVICE says; only that where the driver has no NVML."""
    wanted = os.environ.get("MEGATRON_KO_DEVICE")
    if wanted in ("cpu", "cuda"):
        return "cuda" if wanted == "cuda" else "cpu"
    return "cuda" if _has_gpu() else "cpu"


def device_count() -> int:
    """GPUs that this process may use, 0 on a CPU; as the driver and CUDA_VISIBLE_DEVICES say, without CUDA."""
    if device_type() == "cpu":
        return 0
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return len(visible.split(",")) if visible else int(pynvml.nvmlDeviceGetCount())


def prepare() -> None:
    """Settle what packages find when they look around. Call before megatron-core's first import; needs no torch."""
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
    if device_type() == "cuda":
        _use_cudnn_of_pytorch()
        return
    # No device is visible, so no question to CUDA reaches a driver, here or in a child.
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    for name in _ENGINE:  # its import fails from now on, as if it were not installed: no kernel of it runs on a CPU
        sys.modules.setdefault(name, None)  # type: ignore[arg-type]


def _has_gpu() -> bool:
    """Ask NVML: CUDA itself would answer, too, but nobody who has asked it may fork a process that uses it."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") in _NONE_VISIBLE:
        return False
    try:
        pynvml.nvmlInit()
        return bool(pynvml.nvmlDeviceGetCount() > 0)
    except pynvml.NVMLError:
        return False


def _use_cudnn_of_pytorch() -> None:
    """Point Transformer Engine to the cuDNN that PyTorch brings, unless the user has chosen one.

    It takes a toolkit's copy before PyTorch's. Two of different releases in one process, and its fused attention is
    gone without a word.
    """
    if (spec := _find("nvidia.cudnn")) is not None and spec.submodule_search_locations:
        os.environ.setdefault("CUDNN_HOME", next(iter(spec.submodule_search_locations)))


def _find(name: str) -> importlib.machinery.ModuleSpec | None:
    try:
        return importlib.util.find_spec(name)
    except ModuleNotFoundError:  # the package around it is missing
        return None
