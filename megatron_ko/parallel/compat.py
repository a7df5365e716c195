"""Handles differences between megatron-core 0.16 and 0.19 and their installations; no other module checks versions."""

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

# These warnings are for callers of megatron-core: missing optional packages, names that will change, deprecated PyTorch
# interfaces. A user of this project cannot change any of it.
_NOISY_MODULES = (r"megatron\.", r"torch\.distributed\.")
# The same for log messages. For every model 0.19 logs that GPTModel will be replaced (both releases have it) and that
# it computes a parameter layout itself. PyTorch for CUDA reports that it finds no GPU; the platform handles this.
_NOISY_LOGGERS = (
    "megatron.core.models.gpt.gpt_model",
    "megatron.core.distributed.distributed_data_parallel",
    "torch.utils.cpp_extension",
)
# From this release on, imported on every machine for GPU kernels; PyTorch for CPUs does not include it.
_NEEDS_TRITON = (0, 17)
# Without this option, pip compiles the extension against a PyTorch that it downloads for the build.
INSTALL_ENGINE = 'pip install --no-build-isolation "transformer-engine[pytorch]"'


def prepare_imports() -> None:
    """Make sure that megatron-core can be imported, and silence it. Call before its first import.

    Raises:
        LaunchError: a package that megatron-core needs but does not declare is missing, or Transformer Engine is
            installed but broken.
    """
    for module in _NOISY_MODULES:
        for category in (UserWarning, FutureWarning, DeprecationWarning):
            warnings.filterwarnings("ignore", category=category, module=module)
    for name in _NOISY_LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)
    release = tuple(int(part) for part in version("megatron-core").split(".")[:2])
    if release >= _NEEDS_TRITON and importlib.util.find_spec("triton") is None:
        # A dummy module would break PyTorch's own compiler, which would take it for the real one.
        raise LaunchError(f"megatron-core {version('megatron-core')} needs triton", remedy="pip install triton")
    _import_engine()


def _import_engine() -> None:
    """Import Transformer Engine if it is installed. megatron-core will do so too, but handles only an ImportError.

    ``find_spec`` also finds a package without its compiled extension, or with one built for another PyTorch.

    Raises:
        LaunchError: it cannot be imported.
    """
    if importlib.util.find_spec("transformer_engine") is None:
        return
    try:
        with warnings.catch_warnings():  # for a missing extension the package only warns, and its submodule fails
            warnings.simplefilter("ignore")
            importlib.import_module("torch")  # loads NCCL, which Transformer Engine would not find by itself
            importlib.import_module("transformer_engine.pytorch")
    except Exception as error:  # RuntimeError, FileNotFoundError, AssertionError, OSError, by release and cause
        raise LaunchError(
            "Transformer Engine is installed, but cannot be imported",
            got=f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}",
            expected="its compiled extension, built for this PyTorch, or no Transformer Engine at all",
            remedy=f"{INSTALL_ENGINE}, or pip uninstall transformer-engine",
        ) from error


class _NoFp8:
    """A substitute for Transformer Engine's FP8 state if it is not installed: FP8 is never enabled."""

    @staticmethod
    def is_fp8_enabled() -> bool:
        return False


def _nothing_around(*_: object, **__: object) -> contextlib.AbstractContextManager[None]:
    return contextlib.nullcontext()


def define_missing_names() -> None:
    """Define names that megatron-core uses, but defines only if Transformer Engine is installed.

    These are a matrix product in the router of 0.16, and the FP8 state that recomputation of single modules checks.
    """
    from megatron.core.tensor_parallel import random
    from megatron.core.transformer.moe import moe_utils

    vars(moe_utils).setdefault("te_general_gemm", None)
    vars(random).setdefault("FP8GlobalStateManager", _NoFp8)
    for name in ("fp8_autocast", "activation_recompute_forward"):
        vars(random).setdefault(name, _nothing_around)


def accept_empty_states() -> None:
    """Make megatron-core 0.16 able to save experts of Transformer Engine 2.16 and later.

    There, a recipe that keeps nothing between steps has an empty state. 0.16 splits the state of a layer over its
    experts and requires one; later releases handle this. Call it before a model with these layers is saved.
    """
    from megatron.core.extensions import transformer_engine as engine

    experts = getattr(engine, "TEGroupedLinear", None)  # None if Transformer Engine is not installed
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
    """Within this context, Transformer Engine reads states of delayed scaling: pickles, which 2.20 refuses."""
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
