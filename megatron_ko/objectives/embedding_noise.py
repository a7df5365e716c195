"""Noise on the embeddings of a model's input while it is trained (NEFTune; Jain et al., 2023, arXiv:2310.05914)."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from megatron_ko.parallel.groups import Groups

_LARGEST_SEED = 2**63 - 1


@contextmanager
def noisy_embeddings(model: torch.nn.Module, noise: Tensor, groups: Groups, sequence_parallel: bool) -> Iterator[None]:
    """Add noise to the embeddings of a model chunk, if it has them and is being trained.

    Args:
        model: the chunk, wrapped or not.
        noise: [s, b, h] for the tokens of this rank.
        groups: the ranks.
        sequence_parallel: whether this rank keeps only its part of s behind the embedding.
    """
    part = noise.chunk(groups.tp_size)[groups.tp_rank] if sequence_parallel else noise
    found = [module.embedding for module in model.modules() if getattr(module, "embedding", None) is not None]
    hooks = [
        embedding.register_forward_hook(lambda module, given, output: output + part.to(output.dtype))
        for embedding in found
        if embedding.training
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def draw_noise(
    lengths: Tensor, width: int, alpha: float, seeds: Sequence[int], cp_rank: int = 0, cp_size: int = 1
) -> Tensor:
    """Uniform noise in [-1, 1] times alpha / sqrt(L h), the same at every layout.

    L is the length of a token's own document: in the length of the whole sample the noise of a packed document would
    be weaker than that of the same document alone.

    Args:
        lengths: [b, t] length of the document of each token of the whole samples.
        width: h.
        alpha: strength.
        seeds: one a row.
        cp_rank, cp_size: which part of each sample is this rank's.

    Returns:
        [s, b, h] for this rank's part, fp32.
    """
    rows = []
    for length, seed in zip(lengths, seeds, strict=True):
        generator = torch.Generator(length.device).manual_seed(seed % _LARGEST_SEED)
        values = torch.rand(len(length), width, generator=generator, device=length.device).mul_(2).sub_(1)
        values *= (alpha / math.sqrt(width)) * length.clamp(min=1).rsqrt()[:, None]
        chunks = values.chunk(2 * cp_size)
        rows.append(values if cp_size == 1 else torch.cat([chunks[cp_rank], chunks[-1 - cp_rank]]))
    return torch.stack(rows, dim=1)
