"""Rotary frequencies, scaled for contexts longer than the original one, for megatron-core's rotary embedding."""

import math

import torch
from megatron.core.models.common.embeddings.rotary_pos_embedding import RotaryEmbedding
from torch import Tensor
from torch.distributed import ProcessGroup

from megatron_ko.config import RopeConfig
from megatron_ko.config.rope import Llama3Scaling, YarnScaling
from megatron_ko.parallel.platform import get_platform


def inverse_frequencies(rope: RopeConfig, width: int, length: int) -> Tensor:
    """Radians by which each pair of dimensions rotates from one token to the next.

    Args:
        rope: base and scaling.
        width: dimensions of a head.
        length: tokens of the longest sequence; only dynamic scaling depends on it.

    Returns:
        [width / 2], fp32, on the CPU.
    """
    scaling = rope.scaling
    if scaling is None:
        return _plain(rope.theta, width)
    if scaling.type == "linear":
        return _plain(rope.theta, width) / scaling.factor
    if scaling.type == "ntk":
        return _plain(rope.theta * scaling.factor ** (width / (width - 2)), width)
    if scaling.type == "dynamic":
        original = scaling.original_max_position_embeddings
        growth = scaling.factor * max(length, original) / original - (scaling.factor - 1)
        return _plain(rope.theta * growth ** (width / (width - 2)), width)
    if scaling.type == "yarn":
        return _yarn(rope.theta, width, scaling)
    return _llama3(_plain(rope.theta, width), scaling)


def attention_factor(rope: RopeConfig) -> float:
    """The factor on queries and keys: more than 1 under YaRN, which sharpens attention."""
    scaling = rope.scaling
    if scaling is None or scaling.type != "yarn":
        return 1.0
    if scaling.mscale is None or scaling.mscale_all_dim is None:
        return _yarn_mscale(scaling.factor, 1.0)
    return _yarn_mscale(scaling.factor, scaling.mscale) / _yarn_mscale(scaling.factor, scaling.mscale_all_dim)


def softmax_scale(rope: RopeConfig, width: int) -> float:
    """The factor on attention scores: 1 / sqrt(width) times the attention factor of the query and that of the key.

    Rotation keeps lengths, so the factor can be applied here instead of to every rotated vector. megatron-core's fused
    rotation of packed sequences and its cached keys do not support such a factor, but scores always have a scale.
    """
    return attention_factor(rope) ** 2 / math.sqrt(width)


class ScaledRotaryEmbedding(RotaryEmbedding):
    """megatron-core's rotary embedding with the frequencies of ``inverse_frequencies``.

    Args:
        rope: base and scaling.
        width: dimensions of a head.
        cp_group: ranks that share each sequence.
    """

    def __init__(self, rope: RopeConfig, width: int, cp_group: ProcessGroup) -> None:
        super().__init__(kv_channels=width, rotary_percent=1.0, cp_group=cp_group)
        self._rope, self._width = rope, width

    def get_freqs_non_repeated(self, max_seq_len: int, offset: int = 0) -> Tensor:
        """Angles of ``max_seq_len`` tokens, the first at position ``offset``: [s, d / 2].

        Under dynamic scaling the base depends on the length of the whole sequence or, in generation, of the cache, so
        that all cached keys are rotated in the same way.
        """
        self.inv_freq = inverse_frequencies(self._rope, self._width, max_seq_len).to(get_platform().device)
        angles: Tensor = super().get_freqs_non_repeated(max_seq_len, offset)
        return angles


def _plain(theta: float, width: int) -> Tensor:
    return 1.0 / theta ** (torch.arange(0, width, 2, dtype=torch.float32) / width)


def _yarn(theta: float, width: int, scaling: YarnScaling) -> Tensor:
    kept = _plain(theta, width)

    def dimension(turns: float) -> float:
        """The pair of dimensions that makes this many rotations within the original context."""
        return width * math.log(scaling.original_max_position_embeddings / (turns * math.tau)) / (2 * math.log(theta))

    first = max(math.floor(dimension(scaling.beta_fast)), 0)
    last = min(math.ceil(dimension(scaling.beta_slow)), width - 1)
    passage = (torch.arange(width // 2, dtype=torch.float32) - first) / max(last - first, 0.001)
    interpolated = passage.clamp(0, 1)
    return kept / scaling.factor * interpolated + kept * (1 - interpolated)


def _yarn_mscale(factor: float, mscale: float) -> float:
    return 0.1 * mscale * math.log(factor) + 1.0


def _llama3(kept: Tensor, scaling: Llama3Scaling) -> Tensor:
    turns = scaling.original_max_position_embeddings * kept / math.tau
    # 0 where a pair rotates at most low_freq_factor times within the original context: divided by the factor.
    share = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    share = share.clamp(0, 1)
    return (1 - share) * kept / scaling.factor + share * kept
