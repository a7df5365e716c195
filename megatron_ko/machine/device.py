"""Which kind of device this process computes on: decided before megatron-core and Transformer Engine are imported.

Both look around when they are imported. megatron-core asks CUDA whether it is there, after which no process may be
forked that uses it; Transformer Engine loads the first cuDNN that it finds; and where the package is installed,
megatron-core computes with its CUDA kernels even on a CPU.
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

# Transformer Engine and its compiled extension, which megatron-core imports by name, too.
_ENGINE = ("transformer_engine", "transformer_engine_torch")


@cache
def device_type() -> Literal["cuda", "cpu"]:
    """CUDA when PyTorch is built for it and a GPU can be seen, or what MEGATRON_KO_DEVICE says."""
    wanted = os.environ.get("MEGATRON_KO_DEVICE")
    if wanted in ("cpu", "cuda"):
        return "cuda" if wanted == "cuda" else "cpu"
    return "cuda" if _torch_has_cuda() and _visible_gpus() else "cpu"


def device_count() -> int:
    """GPUs that this process may use, 0 on a CPU; as the driver and CUDA_VISIBLE_DEVICES say, without CUDA."""
    return _visible_gpus() if device_type() == "cuda" else 0


def _visible_gpus() -> int:
    """Ask NVML: CUDA itself would answer, too, but nobody who has asked it may fork a process that uses it."""
    try:
        pynvml.nvmlInit()
        there = int(pynvml.nvmlDeviceGetCount())
    except pynvml.NVMLError:
        return 0
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return there if visible is None else _count_listed(visible, there)


def _count_listed(visible: str, there: int) -> int:
    """Devices in a list of numbers or identifiers; as in CUDA, the first that is none of this machine's ends it."""
    count = 0
    for name in (part.strip() for part in visible.split(",")):
        named = name.startswith(("GPU-", "MIG-"))
        if not named and not (name.isdecimal() and int(name) < there):
            break
        count += 1
    return count


def _torch_has_cuda() -> bool:
    """Whether the installed PyTorch is a build for CUDA, read from its file of versions: importing it takes seconds."""
    spec = _find("torch")
    if spec is None or not spec.submodule_search_locations:
        return False
    version = Path(next(iter(spec.submodule_search_locations))) / "version.py"
    return re.search(r"^cuda\b.*= *['\"]", version.read_text(encoding="utf-8"), re.MULTILINE) is not None


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
