"""Separates the documents of a sample in Transformer Engine's attention, as packed sequences.

A batch holds the document number of each token [b, s]. It is passed as ``attention_mask`` to the attention of every
layer. The portable attention reads it directly; Transformer Engine needs lengths. Only the attention receives them:
everything around it keeps its ordinary shapes, so that any micro-batch size and pipeline split works.
"""

import functools
from typing import Any

import torch
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules
from torch import Tensor

from megatron_ko.models.windows import attentions_of


def keep_documents_apart(spec: TransformerBlockSubmodules) -> None:
    """Make the attention of Transformer Engine's layers accept document numbers.

    Args:
        spec: layers of a model chunk; changed in place.
    """
    for attention in attentions_of(spec):
        attention.core_attention = packing_documents(attention.core_attention)


def packing_documents(attention: Any) -> Any:
    """A subclass of Transformer Engine's attention whose ``attention_mask`` is document numbers [b, s], or None."""

    class PackingAttention(attention):
        def forward(
            self, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, *args: Any, **kwargs: Any
        ) -> Tensor:
            """[s, b, n, d] and twice [s, b, g, d] -> [s, b, n * d]."""
            if attention_mask is None:
                output: Tensor = super().forward(query, key, value, None, *args, **kwargs)
                return output
            length, rows = query.shape[:2]
            flat = [tensor.transpose(0, 1).flatten(0, 1) for tensor in (query, key, value)]  # [b * s, n, d]
            kwargs["packed_seq_params"] = packed_sequences(attention_mask)
            output = super().forward(*flat, None, *args, **kwargs)
            return output.reshape(rows, length, -1).transpose(0, 1)

    return PackingAttention


# All layers of a micro-batch use the same tensor. It is cached by identity, so that a GPU is waited for only once.
@functools.lru_cache(maxsize=4)
def packed_sequences(documents: Tensor) -> PackedSeqParams:
    """The documents of a batch [b, s], one row after the other, as lengths of packed sequences."""
    begins = torch.ones_like(documents, dtype=torch.bool)
    begins[:, 1:] = documents[:, 1:] != documents[:, :-1]
    ends = torch.tensor([documents.numel()], device=documents.device)
    borders = torch.cat([begins.flatten().nonzero().squeeze(1), ends]).to(torch.int32)
    longest = int(borders.diff().max())
    return PackedSeqParams(
        qkv_format="thd", cu_seqlens_q=borders, cu_seqlens_kv=borders, max_seqlen_q=longest, max_seqlen_kv=longest
    )
