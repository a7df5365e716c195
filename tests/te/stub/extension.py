"""The module that stands in for `transformer_engine_torch`: its names, and the kernels that are computed here."""

import types
from collections import Counter
from collections.abc import Callable
from typing import Any, TypeVar

from stub.enums import CLASSES, ENUMS

Kernel = TypeVar("Kernel", bound=Callable[..., Any])


class KernelMissing(NotImplementedError):
    """A CUDA kernel of Transformer Engine was reached that is not computed here."""


KERNELS: dict[str, Callable[..., Any]] = {
    "get_cudnn_version": lambda: 91900,
    "get_cublasLt_version": lambda: 130100,
    "get_num_cublas_streams": lambda: 4,
    "get_stream_priority_range": lambda device_id=-1: (0, -5),
    "ubuf_built_with_mpi": lambda: False,
    "nvte_built_with_cublasmp": lambda: False,
    "device_supports_multicast": lambda device_id=-1: True,
    "get_grouped_gemm_setup_workspace_size": lambda number: 1024 * number,
}
CALLS: Counter[str] = Counter()  # how often each kernel was called in this process


def kernel(function: Kernel) -> Kernel:
    """Register a kernel under the name of its function."""
    KERNELS[function.__name__] = function
    return function


def kernels(*names: str) -> Callable[[Kernel], Kernel]:
    """Register a kernel under several names."""

    def register(function: Kernel) -> Kernel:
        KERNELS.update(dict.fromkeys(names, function))
        return function

    return register


class Extension(types.ModuleType):
    """Every attribute that is no enum and no class is a kernel; which one is found when it is called."""

    def __init__(self) -> None:
        super().__init__("transformer_engine_torch")
        for name, value in ENUMS.items():
            setattr(self, name, value)
        for name in CLASSES:
            setattr(self, name, type(name, (), {}))

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("__"):
            raise AttributeError(name)
        return _entry(name)


def _entry(name: str) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        CALLS[name] += 1
        if name not in KERNELS:
            raise KernelMissing(f"transformer_engine_torch.{name}")
        return KERNELS[name](*args, **kwargs)

    call.__name__ = name
    return call
