"""Devices, ranks, process groups and random states: everything that depends on where and how wide a run is."""

from megatron_ko.machine import device
from megatron_ko.parallel import compat

device.prepare()
compat.prepare_imports()
