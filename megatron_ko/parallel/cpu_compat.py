"""Runs megatron-core on a CPU by replacing the CUDA functions that it calls. Never installed if CUDA is used.

megatron-core refers to CUDA in some 500 places. Nearly all of them go through the few entry points that are replaced
here: the current device, streams and events, ``.cuda()``, the literal ``device="cuda"`` of factory functions, the names
of tensor types, and the state of the device's random generator. Factory functions are wrapped instead of using a
``TorchFunctionMode``, because a mode slows down every operation and does not work in other threads.
"""

import contextlib
import functools
import logging
import time
from collections.abc import Callable
from typing import Any

import torch
import torch._dynamo
from megatron.core.tensor_parallel import random
from torch.utils import _device

from megatron_ko.parallel import cpu_collectives

_CPU = torch.device("cpu")
_FACTORIES = ("tensor", "empty", "zeros", "ones", "full", "arange", "empty_like", "zeros_like", "ones_like")


class HostStream:
    """A CUDA stream on a machine that runs everything in order, so nothing ever has to wait."""

    def __init__(self, *_: object, **__: object) -> None:
        self.device = _CPU

    def wait_stream(self, _: object) -> None:
        """No-op: nothing runs in parallel to this stream."""

    def wait_event(self, _: object) -> None:
        """No-op: an event is complete as soon as it is recorded."""

    def record_event(self, event: "HostEvent | None" = None) -> "HostEvent":
        """Record the event now."""
        event = event or HostEvent()
        event.record()
        return event

    def synchronize(self) -> None:
        """No-op: everything is already done."""


class HostEvent:
    """A CUDA event that reads the host's clock."""

    def __init__(self, *_: object, **__: object) -> None:
        self._time = 0.0

    def record(self, _: object = None) -> None:
        """Record the current time."""
        self._time = time.perf_counter()

    def wait(self, _: object = None) -> None:
        """No-op: the event is complete."""

    def synchronize(self) -> None:
        """No-op: the event is complete."""

    def query(self) -> bool:
        """Always True: the event is complete."""
        return True

    def elapsed_time(self, later: "HostEvent") -> float:
        """Milliseconds from this event to a later one."""
        return (later._time - self._time) * 1e3


@functools.cache
def install() -> None:
    """Replace the CUDA entry points in this process. Idempotent."""
    _patch_tensors()
    _patch_device()
    _patch_streams()
    _patch_random_state()
    cpu_collectives.install()
    # Compiling for a CPU takes longer than it saves; megatron-core's compiled functions run uncompiled.
    torch._dynamo.config.disable = True


def _names_cuda(device: object) -> bool:
    if isinstance(device, torch.device):
        return bool(device.type == "cuda")
    return isinstance(device, str) and device.startswith("cuda")


def _on_host(factory: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(factory)
    def create(*args: Any, **kwargs: Any) -> Any:
        if "device" in kwargs and _names_cuda(kwargs["device"]):
            kwargs["device"] = _CPU
        kwargs.pop("pin_memory", None)  # for a faster copy to a device
        return factory(*args, **kwargs)

    return create


def _patch_tensors() -> None:
    def stay(this: Any, *_: object, **__: object) -> Any:
        return this

    name_or_convert = torch.Tensor.type

    def type_of(this: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        # megatron-core's optimizers sort parameters by names such as torch.cuda.FloatTensor.
        answer = name_or_convert(this, *args, **kwargs)
        return answer.replace("torch.", "torch.cuda.", 1) if isinstance(answer, str) else answer

    # `with torch.device(...)` recognises factories by identity, so it has to know the originals.
    _device._device_constructors()
    for name in _FACTORIES:
        setattr(torch, name, _on_host(getattr(torch, name)))
    for owner, name, replacement in (
        (torch.Tensor, "cuda", stay),
        (torch.nn.Module, "cuda", stay),
        (torch.Tensor, "type", type_of),
    ):
        setattr(owner, name, replacement)


def _replace(**replacements: object) -> None:
    for name, replacement in replacements.items():
        setattr(torch.cuda, name, replacement)


def _always(answer: object) -> Callable[..., object]:
    # A new function each time: PyTorch's compiler has rules keyed by the identity of torch.cuda functions.
    return lambda *_, **__: answer


def _patch_device() -> None:
    _replace(
        is_available=_always(False),
        current_device=_always(_CPU),
        device_count=_always(1),
        set_device=_always(None),
        synchronize=_always(None),
        empty_cache=_always(None),
        memory_allocated=_always(0),
        max_memory_allocated=_always(0),
        memory_reserved=_always(0),
        max_memory_reserved=_always(0),
        is_current_stream_capturing=_always(False),
    )


def _patch_streams() -> None:
    only = HostStream()
    _replace(
        Stream=HostStream,
        Event=HostEvent,
        stream=lambda _: contextlib.nullcontext(),
        current_stream=_always(only),
        default_stream=_always(only),
    )


def _patch_random_state() -> None:
    """Use one generator for both devices, so that megatron-core's seeds and recomputation also control the CPU's."""

    def get_state(*_: object, **__: object) -> torch.Tensor:
        return torch.get_rng_state()

    def set_state(state: torch.Tensor, *_: object, **__: object) -> None:
        torch.set_rng_state(state)

    _replace(
        manual_seed=lambda seed: torch.default_generator.manual_seed(seed),
        # torch.manual_seed calls this after it has seeded the CPU.
        manual_seed_all=_always(None),
        get_rng_state=get_state,
        set_rng_state=set_state,
    )
    # The originals queue their work until CUDA is initialised, which never happens: megatron-core's seeds would have
    # no effect, and recomputation would silently draw other dropout masks than the forward pass did.
    random._get_cuda_rng_state = get_state
    random._set_cuda_rng_state = set_state
    # It warns if the CPU's generator advances while the device's is in use; here they are the same.
    logging.getLogger(random.__name__).setLevel(logging.ERROR)
