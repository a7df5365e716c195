"""The platform, and megatron-core's questions to CUDA when there is none."""

import platform as machine
import subprocess
import sys
import threading
from typing import Any

import pytest
import torch

from megatron_ko.errors import LaunchError
from megatron_ko.parallel.platform import Platform, get_platform


@pytest.fixture(scope="module", autouse=True)
def platform() -> Platform:
    found = get_platform()
    if found.device_type != "cpu":
        pytest.skip("on CUDA nothing is replaced")
    return found


def test_cpu_platform_describes_itself(platform: Platform) -> None:
    assert get_platform() is platform
    assert (platform.backend, platform.device, platform.device_count) == ("gloo", torch.device("cpu"), 0)
    assert platform.peak_flops("bf16") is None
    before = platform.memory()
    assert 0 < before.reserved <= before.allocated_peak
    ballast = torch.ones(64 << 20)
    after = platform.memory()
    assert after.reserved - before.reserved > 0.9 * ballast.nbytes
    assert after.allocated_peak >= after.reserved
    platform.synchronize()
    platform.reset_peak()
    platform.select(7)


@pytest.mark.parametrize(
    ("name", "dtype", "peak"),
    [("NVIDIA H100 80GB HBM3", "bf16", 989e12), ("NVIDIA B200", "fp8", 4500e12), ("NVIDIA L4", "bf16", None)],
)
def test_peaks_are_dense_and_found_by_name(name: str, dtype: str, peak: float | None, monkeypatch: Any) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: name)
    assert Platform("cuda", "nccl").peak_flops(dtype) == peak


@pytest.mark.parametrize(("value", "reason"), [("gpu", "unknown device"), ("cuda", "finds no CUDA device")])
def test_an_impossible_device_is_refused(value: str, reason: str, monkeypatch: Any) -> None:
    monkeypatch.setenv("MEGATRON_KO_DEVICE", value)
    with pytest.raises(LaunchError, match=reason):
        get_platform.__wrapped__()  # without the answer that this process keeps


def test_factories_stay_on_the_host_in_every_thread() -> None:
    made: list[torch.Tensor] = []

    def make() -> None:
        made.append(torch.zeros(2, device="cuda"))
        made.append(torch.tensor([1.0], device=torch.device("cuda", 0)))
        made.append(torch.empty_like(made[0], device="cuda:0"))

    make()
    thread = threading.Thread(target=make)
    thread.start()
    thread.join()
    assert len(made) == 6 and all(tensor.device.type == "cpu" for tensor in made)
    assert torch.ones(1, device=torch.cuda.current_device()).cuda().device.type == "cpu"


def test_other_devices_are_left_alone() -> None:
    assert torch.zeros(2, device="meta").device.type == "meta"
    with torch.device("meta"):
        assert torch.empty(3).device.type == "meta"
        assert torch.nn.Linear(2, 2).weight.device.type == "meta"


def test_tensor_types_have_the_names_that_optimizers_sort_by() -> None:
    for dtype, name in ((torch.float32, "Float"), (torch.bfloat16, "BFloat16"), (torch.float16, "Half")):
        assert torch.zeros(1, dtype=dtype).type() == f"torch.cuda.{name}Tensor"
    assert torch.zeros(1).type(torch.float64).dtype == torch.float64


def test_streams_and_events_are_in_order() -> None:
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        first = stream.record_event()
        sum(range(100_000))
        second = torch.cuda.current_stream().record_event(torch.cuda.Event(enable_timing=True))
    stream.wait_event(first)
    stream.wait_stream(torch.cuda.default_stream())
    assert second.query() and first.elapsed_time(second) > 0


def test_the_device_generator_is_the_host_generator() -> None:
    torch.cuda.manual_seed(11)
    state = torch.cuda.get_rng_state()
    drawn = torch.rand(4)
    torch.cuda.set_rng_state(state)
    assert torch.rand(4).equal(drawn)
    torch.manual_seed(11)
    assert torch.rand(4).equal(drawn)


_MEASURE = """
import sys, psutil, torch
from megatron_ko.parallel.host_memory import keep_freed_memory
keep_freed_memory()
torch.ones(1 << 20)  # whatever the first allocation needs
before = psutil.Process().memory_info().rss
tensor = torch.ones(int(sys.argv[1]) << 18)
assert psutil.Process().memory_info().rss - before > int(sys.argv[1]) << 19
del tensor
print((psutil.Process().memory_info().rss - before) / 2**20)
"""


def _resident_after_freeing(mebibytes: int) -> float:
    """MiB that stay resident of a tensor that was freed, in a process whose heap has no room yet."""
    done = subprocess.run([sys.executable, "-c", _MEASURE, str(mebibytes)], capture_output=True, text=True, check=True)
    return float(done.stdout)


@pytest.mark.skipif(machine.libc_ver()[0] != "glibc", reason="only glibc has the switches")
def test_small_blocks_are_kept_and_large_ones_given_back() -> None:
    """Kept large ones would leave holes that nothing fits into: memory would grow with every step."""
    assert _resident_after_freeing(20) > 15
    assert _resident_after_freeing(64) < 2
