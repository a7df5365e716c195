"""Reports which attention kernel is used, and refuses the slow one of Transformer Engine.

Transformer Engine has several kernels. It falls back silently to one that keeps all scores in memory, for example when
two versions of cuDNN are loaded, or when no other kernel supports the head size or the mask.
"""

import importlib
from pathlib import Path
from typing import Any

import torch
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules
from torch import Tensor
from torch.nn.attention import SDPBackend

from megatron_ko.errors import LaunchError
from megatron_ko.log import get_logger
from megatron_ko.models.windows import attentions_of
from megatron_ko.parallel.platform import get_platform

_RECORD = "transformer_engine.pytorch.attention.dot_product_attention"
_log = get_logger(__name__)


def watch_choice(spec: TransformerBlockSubmodules, unfused_allowed: bool) -> None:
    """Make the attention of Transformer Engine's layers record its kernel in the attribute ``attention_kernel``.

    Args:
        spec: layers of a model chunk; changed in place.
        unfused_allowed: whether unfused attention on CUDA is a warning instead of an error.
    """
    for attention in attentions_of(spec):
        attention.core_attention = _telling_kernel(attention.core_attention, unfused_allowed)


def kernels_of(chunks: list[torch.nn.Module]) -> str:
    """Names of the attention kernels that these chunks used; empty if none is recorded."""
    names = {getattr(module, "attention_kernel", None) for chunk in chunks for module in chunk.modules()}
    return ", ".join(sorted(name for name in names if isinstance(name, str)))


def name_kernel(query: Tensor, key: Tensor, value: Tensor) -> str:
    """The kernel of PyTorch's causal attention for [b, n, s, d] and twice [b, g, s, d]; warns if it is unfused."""
    choice = torch._fused_sdp_choice(query, key, value, is_causal=True, enable_gqa=query.shape[1] != key.shape[1])
    name = SDPBackend(choice).name.lower()
    if name == "math":
        _log.warning("attention is unfused on this device: it is slow and keeps all scores in memory")
    return f"pytorch {name}"


def _telling_kernel(attention: Any, unfused_allowed: bool) -> Any:
    class TellingAttention(attention):
        attention_kernel: str | None = None

        def forward(self, query: Tensor, key: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            """Compute attention; record the kernel the first time in training."""
            output: Tensor = super().forward(query, key, *args, **kwargs)
            if self.training and self.attention_kernel is None:
                self.attention_kernel = _newest_choice()
                if self.attention_kernel == "unfused" and get_platform().device_type == "cuda":
                    _tell_unfused(query, key, unfused_allowed or query.dtype == torch.float32)
            return output

    return TellingAttention


def _newest_choice() -> str:
    """The kernel of Transformer Engine's latest attention call: "fused ...", "flash ..." or "unfused"."""
    record = importlib.import_module(_RECORD)._attention_backends
    if record["use_fused_attention"]:
        return f"fused {_sub_backend(record['fused_attention_backend'])}"
    return f"flash {record['flash_attention_backend']}" if record["use_flash_attention"] else "unfused"


def _sub_backend(backend: object) -> str:
    """Name of cuDNN's kernel. It is an enum of the extension, a Python enum, or a number, depending on the release."""
    if isinstance(backend, int):
        kinds = importlib.import_module("transformer_engine.pytorch.cpp_extensions.fused_attn").FusedAttnBackend
        backend = kinds(backend).name
    return str(backend).split("NVTE_")[-1]


def _tell_unfused(query: Tensor, key: Tensor, allowed: bool) -> None:
    """Warn about unfused attention, or refuse it.

    Args:
        query: [s, b, n, d], or [t, n, d] with documents.
        key: the same with g heads.
        allowed: whether to warn instead of raising an error.

    Raises:
        LaunchError: unfused attention is not allowed.
    """
    rows = query.shape[1] if query.dim() == 4 else 1
    scores = rows * query.shape[-2] * query.shape[0] * key.shape[0] * query.element_size()
    cost = f"its scores take {scores / 2**30:.1f} GiB per layer and micro-batch"
    if allowed:
        _log.warning("attention is unfused on this GPU: slow, and %s", cost)
        return
    copies = _loaded("libcudnn.so")
    raise LaunchError(
        "Transformer Engine has no fused attention for this run",
        got=f"{query.dtype}, heads of {query.shape[-1]}; {cost}; cuDNN: {', '.join(copies) or 'none'}",
        expected="a kernel of cuDNN or FlashAttention",
        remedy="set CUDNN_HOME to the cuDNN that comes with PyTorch"
        if len(copies) > 1
        else "NVTE_DEBUG=1 NVTE_DEBUG_LEVEL=2 shows why; precision.unfused_attention=true runs without it",
    )


def _loaded(library: str) -> list[str]:
    """Paths of the files with this name that are mapped into this process."""
    lines = Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()
    return sorted({f"/{path}" for line in lines if library in (path := line.partition("/")[2]).rpartition("/")[2]})
