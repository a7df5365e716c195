"""Differences between megatron-core 0.16 and 0.19, and between installations of them. Nothing else knows a version."""

import contextlib
import importlib.util
import logging
import warnings
from importlib.metadata import version

from megatron_ko.errors import LaunchError

# Warnings from inside the engine speak to whoever calls it: missing optional packages, names that will change, PyTorch
# interfaces that megatron-core has not left yet. A user of this project can change none of it.
_NOISY_MODULES = (r"megatron\.", r"torch\.distributed\.")
# The same through logging: 0.19 announces with every model that GPTModel will be replaced (both releases have it), and
# that it computes a parameter layout itself; PyTorch for CUDA reports that it finds no GPU, which the platform knows.
_NOISY_LOGGERS = (
    "megatron.core.models.gpt.gpt_model",
    "megatron.core.distributed.distributed_data_parallel",
    "torch.utils.cpp_extension",
)
# Imported on every machine from this release on, for kernels that only a GPU runs; PyTorch for CPUs does not bring it.
_NEEDS_TRITON = (0, 17)


def prepare_imports() -> None:
    """Make sure that megatron-core can be imported, and keep it quiet. Call before its first import.

    Raises:
        LaunchError: a package is missing that megatron-core needs and does not declare.
    """
    for module in _NOISY_MODULES:
        for category in (UserWarning, FutureWarning, DeprecationWarning):
            warnings.filterwarnings("ignore", category=category, module=module)
    for name in _NOISY_LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)
    release = tuple(int(part) for part in version("megatron-core").split(".")[:2])
    if release >= _NEEDS_TRITON and importlib.util.find_spec("triton") is None:
        # An inert module in its place would break PyTorch's own compiler, which takes it for the real one.
        raise LaunchError(f"megatron-core {version('megatron-core')} needs triton", remedy="pip install triton")


class _NoFp8:
    """Transformer Engine's answers where there is none: nothing is computed in 8 bits."""

    @staticmethod
    def is_fp8_enabled() -> bool:
        return False


def _nothing_around(*_: object, **__: object) -> contextlib.AbstractContextManager[None]:
    return contextlib.nullcontext()


def define_missing_names() -> None:
    """Define what megatron-core reads and defines only where Transformer Engine is installed.

    That is a matrix product in the router of 0.16, and what recomputation of single modules asks about 8-bit states.
    """
    from megatron.core.tensor_parallel import random
    from megatron.core.transformer.moe import moe_utils

    vars(moe_utils).setdefault("te_general_gemm", None)
    vars(random).setdefault("FP8GlobalStateManager", _NoFp8)
    for name in ("fp8_autocast", "activation_recompute_forward"):
        vars(random).setdefault(name, _nothing_around)
