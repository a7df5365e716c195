"""Which GPUs count: as CUDA counts them, and only where PyTorch could use them."""

from types import SimpleNamespace
from typing import Any

import pytest

from megatron_ko.machine import device


@pytest.mark.parametrize(
    ("visible", "count"),
    [("0,1,2", 3), ("0,", 1), ("0,-1,2", 1), ("GPU-a,MIG-b", 2), ("", 0), (" ", 0), ("-1", 0), ("99", 0), ("void", 0)],
)
def test_the_first_name_of_no_device_ends_the_list(visible: str, count: int) -> None:
    assert device._count_listed(visible, there=8) == count


class Nvml:
    """NVML as it behaves: nothing is answered before it is initialised."""

    NVMLError = RuntimeError

    def __init__(self, gpus: int) -> None:
        self._gpus, self._ready = gpus, False

    def nvmlInit(self) -> None:
        if not self._gpus:
            raise RuntimeError("no driver")
        self._ready = True

    def nvmlDeviceGetCount(self) -> int:
        if not self._ready:
            raise RuntimeError("uninitialised")
        return self._gpus


@pytest.mark.parametrize(
    ("wanted", "gpus", "built", "visible", "kind", "count"),
    [
        (None, 8, True, None, "cuda", 8),
        (None, 8, True, "2,3", "cuda", 2),
        (None, 8, True, "", "cpu", 0),
        (None, 8, False, None, "cpu", 0),  # a PyTorch for CPUs on a machine with GPUs
        (None, 0, True, None, "cpu", 0),
        ("cpu", 8, True, None, "cpu", 0),
        ("cuda", 8, True, None, "cuda", 8),
        ("cuda", 0, True, None, "cuda", 0),
    ],
)
def test_kind_and_number_of_devices(
    wanted: str | None, gpus: int, built: bool, visible: str | None, kind: str, count: int, monkeypatch: Any
) -> None:
    monkeypatch.setattr(device, "pynvml", Nvml(gpus))
    monkeypatch.setattr(device, "_torch_has_cuda", lambda: built)
    for name, value in (("MEGATRON_KO_DEVICE", wanted), ("CUDA_VISIBLE_DEVICES", visible)):
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, value)
    monkeypatch.setattr(device, "device_type", device.device_type.__wrapped__)  # without this process's answer
    assert (device.device_type(), device.device_count()) == (kind, count)


def test_a_build_for_cuda_is_known_by_its_file(tmp_path: Any, monkeypatch: Any) -> None:
    spec = SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    monkeypatch.setattr(device, "_find", lambda _: spec)
    for text, has in (("cuda: Optional[str] = '13.0'", True), ("cuda: Optional[str] = None", False)):
        (tmp_path / "version.py").write_text(f"debug = False\n{text}\n", encoding="utf-8")
        assert device._torch_has_cuda() is has
