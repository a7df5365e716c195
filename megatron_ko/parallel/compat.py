"""Differences between megatron-core 0.16 and 0.19, and between installations of them. Nothing else knows a version."""

import contextlib
import importlib
import importlib.util
import logging
import os
import warnings
from collections.abc import Iterator
from importlib.metadata import version
from typing import Any

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
# Without the option pip compiles the extension against whatever PyTorch it downloads for that purpose.
INSTALL_ENGINE = 'pip install --no-build-isolation "transformer-engine[pytorch]"'


def prepare_imports() -> None:
    """Make sure that megatron-core can be imported, and keep it quiet. Call before its first import.

    Raises:
        LaunchError: a package is missing that megatron-core needs and does not declare, or Transformer Engine is
            there and broken.
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
    _import_engine()


def _import_engine() -> None:
    """Import Transformer Engine where it is installed, as megatron-core will, which survives an ImportError only.

    Its package without the compiled extension, or an extension made for another PyTorch, is found by ``find_spec``.

    Raises:
        LaunchError: it cannot be imported.
    """
    if importlib.util.find_spec("transformer_engine") is None:
        return
    try:
        with warnings.catch_warnings():  # a missing extension is a warning of the package and an error of its part
            warnings.simplefilter("ignore")
            importlib.import_module("torch")  # loads NCCL, which Transformer Engine would not find by itself
            importlib.import_module("transformer_engine.pytorch")
    except Exception as error:  # RuntimeError, FileNotFoundError, AssertionError, OSError, by release and by what lacks
        raise LaunchError(
            "Transformer Engine is installed, but cannot be imported",
            got=f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}",
            expected="its compiled extension, made for this PyTorch, or no Transformer Engine at all",
            remedy=f"{INSTALL_ENGINE}, or pip uninstall transformer-engine",
        ) from error


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


def accept_empty_states() -> None:
    """Let megatron-core 0.16 save experts of Transformer Engine 2.16 and later.

    A recipe that keeps nothing from step to step has an empty state there. 0.16 divides the state of a layer among its
    experts and expects to find one; later releases know. To be called before a model of these layers is saved.
    """
    from megatron.core.extensions import transformer_engine as engine

    experts = getattr(engine, "TEGroupedLinear", None)  # None where Transformer Engine is not installed
    if experts is None:
        return
    split = experts._split_extra_state

    def split_unless_empty(this: Any, state: Any) -> list[Any]:
        empty = this._decode_extra_state(state) is None
        parts: list[Any] = [state] * this.num_gemms if empty else split(this, state)
        return parts

    experts._split_extra_state = split_unless_empty


@contextlib.contextmanager
def allow_pickled_states() -> Iterator[None]:
    """While inside, Transformer Engine reads the state of delayed scaling, which 2.20 refuses: a Python pickle."""
    name = "NVTE_ALLOW_UNSAFE_PICKLE_EXTRA_STATE"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
