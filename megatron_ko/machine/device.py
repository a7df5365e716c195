"""Decides which kind of device this process uses, before megatron-core and Transformer Engine are imported.

Both inspect the machine when they are imported. megatron-core queries CUDA, and after that no process that uses CUDA
may be forked. Transformer Engine loads the first cuDNN that it finds. If Transformer Engine is installed, megatron-core
uses its CUDA kernels even on a CPU.
"""

import importlib.machinery
import importlib.util
import os
import re
import sys
from functools import cache
from pathlib import Path
from typing import Literal

import pynvml

# Transformer Engine and its compiled extension, which megatron-core also imports by name.
_ENGINE = ("transformer_engine", "transformer_engine_torch")


@cache
def device_type() -> Literal["cuda", "cpu"]:
    """CUDA if PyTorch is built for it and a GPU is visible, or the value of MEGATRON_KO_DEVICE."""
    wanted = os.environ.get("MEGATRON_KO_DEVICE")
    if wanted in ("cpu", "cuda"):
        return "cuda" if wanted == "cuda" else "cpu"
    return "cuda" if _torch_has_cuda() and _visible_gpus() else "cpu"


def device_count() -> int:
    """GPUs that this process may use (0 on a CPU), from the driver and CUDA_VISIBLE_DEVICES, without using CUDA."""
    return _visible_gpus() if device_type() == "cuda" else 0


def _visible_gpus() -> int:
    """Ask NVML, not CUDA: a process that has queried CUDA may not fork another one that uses it."""
    try:
        pynvml.nvmlInit()
        there = int(pynvml.nvmlDeviceGetCount())
    except pynvml.NVMLError:
        return 0
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return there if visible is None else _count_listed(visible, there)


def _count_listed(visible: str, there: int) -> int:
    """Devices in a list of numbers or identifiers; as in CUDA, the first one that does not exist ends the list."""
    count = 0
    for name in (part.strip() for part in visible.split(",")):
        named = name.startswith(("GPU-", "MIG-"))
        if not named and not (name.isdecimal() and int(name) < there):
            break
        count += 1
    return count


def _torch_has_cuda() -> bool:
    """Whether PyTorch is built for CUDA. Read from its version file, because importing it takes seconds."""
    spec = _find("torch")
    if spec is None or not spec.submodule_search_locations:
        return False
    version = Path(next(iter(spec.submodule_search_locations))) / "version.py"
    return re.search(r"^cuda\b.*= *['\"]", version.read_text(encoding="utf-8"), re.MULTILINE) is not None


def prepare() -> None:
    """Prepare what packages find on import. Call before megatron-core's first import; needs no torch."""
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
    if device_type() == "cuda":
        _use_cudnn_of_pytorch()
        return
    # Hide all devices, so that no CUDA query reaches a driver, here or in a child process.
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    for name in _ENGINE:  # importing it now fails, as if it were not installed, because its kernels do not run on a CPU
        sys.modules.setdefault(name, None)  # type: ignore[arg-type]


def _use_cudnn_of_pytorch() -> None:
    """Point Transformer Engine to the cuDNN that comes with PyTorch, unless the user has chosen one.

    It prefers a CUDA toolkit's copy. If a process loads two different releases of cuDNN, fused attention is silently
    disabled.
    """
    if (spec := _find("nvidia.cudnn")) is not None and spec.submodule_search_locations:
        os.environ.setdefault("CUDNN_HOME", next(iter(spec.submodule_search_locations)))


def _find(name: str) -> importlib.machinery.ModuleSpec | None:
    try:
        return importlib.util.find_spec(name)
    except ModuleNotFoundError:  # the package around it is missing
        return None
