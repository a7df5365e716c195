"""Differences between megatron-core 0.16 and 0.19, and between installations of them. Nothing else knows a version."""

import importlib
import importlib.util
import logging
import warnings

from megatron_ko.errors import LaunchError

# What megatron-core warns of on every machine and nobody who reads it can change.
_NOISE = (
    "(Transformer Engine and Apex are|Apex is) not installed",
    "full scope is deprecated",
    "`torch.distributed.(reduce_scatter_tensor|all_gather_into_tensor)` is deprecated",
)


def prepare_imports() -> None:
    """Make sure that megatron-core can be imported, and keep it quiet. Call before its first import.

    Raises:
        LaunchError: a package is missing that megatron-core needs and does not declare.
    """
    for message in _NOISE:
        warnings.filterwarnings("ignore", message=message)
    # 0.19 announces with every model that GPTModel will be replaced; both releases have it.
    logging.getLogger("megatron.core.models.gpt.gpt_model").setLevel(logging.ERROR)
    if importlib.util.find_spec("triton") is None:
        # 0.19 imports it on every machine, for kernels that only a GPU runs; PyTorch for CPUs does not bring it.
        # (An inert module in its place would break PyTorch's own compiler, which takes it for the real one.)
        try:
            importlib.import_module("megatron.core")
        except ModuleNotFoundError as error:
            if error.name != "triton":
                raise
            raise LaunchError("this release of megatron-core needs triton", remedy="pip install triton") from error
