"""Imports PyTorch and megatron-core in two thirds of the time, by skipping unnecessary work.

The imports create about a million objects that are never freed, so collecting garbage during the imports, or checking
these objects later, is wasted time. megatron-core also passes functions to PyTorch's compiler on import. If they run
uncompiled, the compiler's back end does not have to be imported.
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
    """Make later imports of both packages faster. Needs no torch.

    Args:
        compiled: whether megatron-core may compile functions.
    """
    sys.meta_path.insert(0, _Finder(compiled))
    atexit.register(gc.unfreeze)  # otherwise libraries that count their objects at exit would report leaks


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
