"""Transformer Engine's own Python code on a machine without a GPU.

Its package `transformer-engine` is pure Python; what is compiled is the extension `transformer_engine_torch`. Here a
module of that name stands in: its enums are the real ones, some of its kernels are computed by PyTorch, and any other
raises `KernelMissing` with its name. A kernel rounds where the CUDA source rounds and sums in fp32; it knows nothing of
streams, swizzled scales, and the order in which a GPU sums.
"""

from stub import attention, casts, elementwise, gemm, norms, optimizer, softmax
from stub.extension import CALLS, KERNELS, KernelMissing
from stub.loading import install

__all__ = [
    "CALLS",
    "KERNELS",
    "KernelMissing",
    "attention",
    "casts",
    "elementwise",
    "gemm",
    "install",
    "norms",
    "optimizer",
    "softmax",
]
