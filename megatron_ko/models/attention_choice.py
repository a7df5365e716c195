"""Which kernel Transformer Engine takes for attention: told, and refused where it is the slow one.

It has several, and falls back to one that keeps all scores in memory without a word: with two cuDNN in a process, with
a head size or a mask that no other kernel takes.
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
    """Let the attention of Transformer Engine's layers say in its attribute ``attention_kernel`` what it computes with.

    Args:
        spec: layers of a model chunk; changed in place.
        unfused_allowed: whether unfused attention on CUDA is a warning instead of an error.
    """
    for attention in attentions_of(spec):
        attention.core_attention = _telling_kernel(attention.core_attention, unfused_allowed)


def kernels_of(chunks: list[torch.nn.Module]) -> str:
    """Names of the kernels that the layers of these chunks took; empty where they do not tell."""
    names = {getattr(module, "attention_kernel", None) for chunk in chunks for module in chunk.modules()}
    return ", ".join(sorted(name for name in names if isinstance(name, str)))


def name_kernel(query: Tensor, key: Tensor, value: Tensor) -> str:
    """What PyTorch's causal attention runs on for [b, n, s, d] and twice [b, g, s, d]; warns of the unfused one."""
    choice = torch._fused_sdp_choice(query, key, value, is_causal=True, enable_gqa=query.shape[1] != key.shape[1])
    name = SDPBackend(choice).name.lower()
    if name == "math":
        _log.warning("attention is unfused on this device: slow, and with all scores in memory")
    return f"pytorch {name}"


def _telling_kernel(attention: Any, unfused_allowed: bool) -> Any:
    class TellingAttention(attention):
        attention_kernel: str | None = None

        def forward(self, query: Tensor, key: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            """Attend; the first time in training, see how."""
            output: Tensor = super().forward(query, key, *args, **kwargs)
            if self.training and self.attention_kernel is None:
                self.attention_kernel = _newest_choice()
                if self.attention_kernel == "unfused" and get_platform().device_type == "cuda":
                    _tell_unfused(query, key, unfused_allowed or query.dtype == torch.float32)
            return output

    return TellingAttention


def _newest_choice() -> str:
    """What Transformer Engine's newest attention ran on: "fused ...", "flash ..." or "unfused"."""
    record = importlib.import_module(_RECORD)._attention_backends
    if record["use_fused_attention"]:
        return f"fused {_sub_backend(record['fused_attention_backend'])}"
    return f"flash {record['flash_attention_backend']}" if record["use_flash_attention"] else "unfused"


def _sub_backend(backend: object) -> str:
    """Name of cuDNN's kernel: by release an enumeration of the extension, one of Python, or a member's number."""
    if isinstance(backend, int):
        kinds = importlib.import_module("transformer_engine.pytorch.cpp_extensions.fused_attn").FusedAttnBackend
        backend = kinds(backend).name
    return str(backend).split("NVTE_")[-1]


def _tell_unfused(query: Tensor, key: Tensor, allowed: bool) -> None:
    """Warn of unfused attention, or refuse it.

    Args:
        query: [s, b, n, d], or [t, n, d] with documents.
        key: the same with g heads.
        allowed: whether it goes on.

    Raises:
        LaunchError: it does not.
    """
    rows = query.shape[1] if query.dim() == 4 else 1
    scores = rows * query.shape[-2] * query.shape[0] * key.shape[0] * query.element_size()
    cost = f"its scores take {scores / 2**30:.1f} GiB a layer and micro-batch"
    if allowed:
        _log.warning("attention is unfused on this GPU: slow, and %s", cost)
        return
    copies = _loaded("libcudnn.so")
    raise LaunchError(
        "Transformer Engine has no fused attention for this run",
        got=f"{query.dtype}, heads of {query.shape[-1]}; {cost}; cuDNN: {', '.join(copies) or 'none'}",
        expected="a kernel of cuDNN or FlashAttention",
        remedy="CUDNN_HOME should name the one cuDNN that PyTorch brings"
        if len(copies) > 1
        else "NVTE_DEBUG=1 NVTE_DEBUG_LEVEL=2 shows why; precision.unfused_attention=true goes on without",
    )


def _loaded(library: str) -> list[str]:
    """Paths of the files with this name that are mapped into this process."""
    lines = Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()
    return sorted({f"/{path}" for line in lines if library in (path := line.partition("/")[2]).rpartition("/")[2]})
