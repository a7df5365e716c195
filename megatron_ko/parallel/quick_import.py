"""Importing PyTorch and megatron-core in two thirds of the time: without work that comes to nothing.

Their million objects stay, so a garbage collection meanwhile, or of them later, finds nothing. And megatron-core hands
functions to PyTorch's compiler when it is imported; where they run as they are written, the compiler's back end need
not be imported either.
"""

import atexit
import gc
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

_LARGE = ("torch", "torch._dynamo", "megatron.core")


def install(compiled: bool) -> None:
    """Import them so when somebody does. Needs no torch.

    Args:
        compiled: whether megatron-core may have functions compiled.
    """
    sys.meta_path.insert(0, _Finder(compiled))
    atexit.register(gc.unfreeze)  # libraries that count their objects at the end would report leaks


class _Finder(MetaPathFinder):
    def __init__(self, compiled: bool) -> None:
        self._compiled = compiled

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in _LARGE:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            as_written = fullname == "megatron.core" and not self._compiled
            loader: Any = spec.loader
            loader.exec_module = partial(_execute, loader.exec_module, as_written)
        return spec


def _execute(execute: Callable[[ModuleType], None], as_written: bool, module: ModuleType) -> None:
    with _no_collections():
        if not as_written:
            return execute(module)
        import torch

        compile_ = torch.compile
        setattr(torch, "compile", lambda function: function)  # noqa: B010  (for mypy it is another type)
        try:
            execute(module)
        finally:
            setattr(torch, "compile", compile_)  # noqa: B010


@contextmanager
def _no_collections() -> Iterator[None]:
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if enabled:
            gc.enable()
