"""Context parallelism: the positions of a rank's queries, and the keys and values of all ranks in order.

A sequence is cut into 2c chunks, and rank i of c holds chunks i and 2c - 1 - i, as megatron-core's rotary embedding
expects. A causal query sees everything before it, so a chunk from the front and one from the back together see the
same number of keys on every rank.
"""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from megatron.core.tensor_parallel import gather_from_sequence_parallel_region
from torch import Tensor

from megatron_ko.errors import ConfigError
from megatron_ko.models.blueprint import Blueprint


def check_exchange(blueprint: Blueprint, transformer_engine: bool) -> None:
    """Refuse options that the layers on this machine do not support; with ``precision.backend: auto`` it decides which.

    Raises:
        ConfigError: the layers do not have this exchange of keys and values, or Transformer Engine would have to
            separate documents, which it only does for padded ones.
    """
    parallel = blueprint.parallel
    if parallel.context == 1:
        return
    if not transformer_engine and parallel.context_exchange != "all_gather":
        raise ConfigError(
            "portable layers support only one way to exchange keys and values",
            got=f"parallel.context_exchange={parallel.context_exchange}",
            expected="all_gather",
            remedy="parallel.context_exchange=all_gather, or Transformer Engine on CUDA",
        )
    if transformer_engine and blueprint.document_mask:
        raise ConfigError(
            "Transformer Engine cannot separate documents under context parallelism",
            got=f"data.document_mask=true, parallel.context={parallel.context}",
            expected="portable layers, or whole sequences on each rank",
            remedy="precision.backend=portable, or parallel.context=1",
        )


def positions_of(length: int, rank: int, size: int) -> tuple[range, ...]:
    """Positions in the whole sequence of the ``length`` tokens that a rank holds, as contiguous ranges."""
    if size == 1:
        return (range(length),)
    chunk = length // 2
    return tuple(range(place * chunk, (place + 1) * chunk) for place in (rank, 2 * size - 1 - rank))


def gather_in_order(tensors: Sequence[Tensor], group: dist.ProcessGroup) -> list[Tensor]:
    """Gather the parts of all ranks in sequence order, with one collective.

    In the backward pass, gradients are summed over ranks, and each rank gets those of its own tokens.

    Args:
        tensors: [s, b, g, d]; their shapes may differ only in d.
        group: the ranks that share the sequence.

    Returns:
        The same tensors for the whole sequence, [s * c, b, g, d].
    """
    widths = [tensor.shape[-1] for tensor in tensors]
    parts = gather_from_sequence_parallel_region(torch.cat(list(tensors), dim=-1), group=group)
    chunks = parts.chunk(2 * group.size())
    whole = torch.cat([*chunks[0::2], *reversed(chunks[1::2])])
    return list(whole.split(widths, dim=-1))
