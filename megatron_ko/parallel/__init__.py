"""Devices, ranks, process groups and random states: everything that depends on the machine and the number of ranks."""

from megatron_ko.machine import device
from megatron_ko.parallel import compat, quick_import

device.prepare()
quick_import.install(compiled=device.device_type() == "cuda")
compat.prepare_imports()
