"""Putting the stand-in in place, and the rest of CUDA that Transformer Engine asks for."""

import contextlib
import importlib
import importlib.abc
import importlib.machinery
import os
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from stub import cross_entropy
from stub.extension import Extension

CAPABILITY = (10, 0)  # of a Blackwell, which has every recipe
NAME = "NVIDIA B200"


def install() -> None:
    """Make `import transformer_engine.pytorch` work in this process. Call before megatron-core is imported.

    Raises:
        ModuleNotFoundError: `make test-te` has not installed the package.
    """
    sys.path.insert(0, str(Path(sys.prefix) / "te"))
    # No shared library is loaded then; kernels in Triton are run by its interpreter.
    os.environ.update(NVTE_PROJECT_BUILDING="1", TRITON_INTERPRET="1")
    extension = sys.modules["transformer_engine_torch"] = Extension()
    sys.meta_path.insert(0, _NoExtension())
    _answer_for_the_device()
    importlib.import_module("transformer_engine.pytorch")
    # This module imports * from the extension, which finds its kernels by name only when they are called.
    importlib.import_module("transformer_engine.pytorch.cpp_extensions").__getattr__ = extension.__getattr__
    quantization = importlib.import_module("transformer_engine.pytorch.quantization")
    quantization._FP8_BLOCK_SCALING_SUPPORT = (True, "")  # it would ask which CUDA this PyTorch was made for
    cross_entropy.replace()
    _keep_tensors_on_the_host()


class _NoExtension(importlib.abc.MetaPathFinder):
    """Lets `transformer_engine.common` take the module that is there instead of loading a shared object."""

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        if fullname != "transformer_engine.common":
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path)
        assert spec is not None and spec.loader is not None
        run = spec.loader.exec_module

        def run_and_replace(module: types.ModuleType) -> None:
            run(module)
            module.load_framework_extension = lambda framework: None  # type: ignore[attr-defined]

        spec.loader.exec_module = run_and_replace  # type: ignore[method-assign]
        return spec


def _answer_for_the_device() -> None:
    properties = types.SimpleNamespace(
        major=CAPABILITY[0], minor=CAPABILITY[1], name=NAME, multi_processor_count=132, total_memory=180 << 30
    )
    torch.cuda.get_device_properties = lambda *_: properties
    torch.cuda.get_device_capability = lambda *_: CAPABILITY
    torch.cuda.get_device_name = lambda *_: NAME


def _keep_tensors_on_the_host() -> None:
    """What `cpu_compat` leaves: nothing of the project's own code, or of megatron-core's, needs it."""
    move = torch.Tensor.to

    def names_cuda(device: object) -> bool:
        return isinstance(device, str | torch.device) and str(device).startswith("cuda")

    def stay(this: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        others = [value for value in args if not names_cuda(value)]
        named = {name: value for name, value in kwargs.items() if not names_cuda(value)}
        return move(this, *others, **named) if others or named else this

    torch.Tensor.to = stay
    torch.Tensor.is_cuda = property(lambda this: True)
    torch.Tensor.record_stream = lambda this, stream: None


def let_collectives_run_one_by_one() -> None:
    """gloo has no coalescing, and what PyTorch makes of it mixes up tensors of different types."""
    from megatron.core.distributed import param_and_grad_buffer
    from transformer_engine.pytorch import distributed
    from transformer_engine.pytorch.attention.dot_product_attention import context_parallel

    for module in (param_and_grad_buffer, distributed, torch.distributed):
        module._coalescing_manager = _at_once
    context_parallel.flash_attn_p2p_communicate = _exchange


def _exchange(
    rank: int, sent: torch.Tensor, to: int, received: torch.Tensor, source: int, group: Any, batched: bool
) -> list[Any]:
    """A message each way. gloo waits for ever for one whose request nobody holds any more."""
    for turn in (0, 1):
        if turn == rank % 2:
            torch.distributed.send(sent, to, group)
        else:
            torch.distributed.recv(received, source, group)
    return []


@contextlib.contextmanager
def _at_once(*_: object, **__: object) -> Iterator[types.SimpleNamespace]:
    yield types.SimpleNamespace(wait=lambda: None, append=lambda work: work is None or work.wait())
