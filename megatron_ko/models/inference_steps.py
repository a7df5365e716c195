"""The next token of a batch of texts on one rank, from a cache of rotated keys and of values.

megatron-core's own context keeps keys that are not rotated, and rotates all of them again in every layer for every
token, with angles whose cosines and sines it computes each time. Here a key is rotated once, before it is kept, and the
heads that share a key are the rows of one query, so that the cache is read once for all of them.
"""

from typing import Any, Protocol

import torch
import torch.nn.functional as F
from megatron.core.inference.contexts import StaticInferenceContext
from megatron.core.transformer.identity_op import IdentityOp
from torch import Tensor

from megatron_ko.models.attention import PortableAttention


class Steps(Protocol):
    """What continues texts."""

    def logits(self, tokens: Tensor) -> Tensor:
        """Logits after the last of ``tokens``, which continue those given before: [b, s] -> [b, padded v]."""


def steps_of(network: torch.nn.Module, batch: int, length: int) -> Steps:
    """Begin texts.

    Args:
        network: one chunk, the whole model, on this rank and in evaluation mode.
        batch: number of texts.
        length: tokens of the longest one at its end. Under dynamic scaling, positions depend on it.
    """
    cores = (layer.self_attention.core_attention for layer in network.decoder.layers)
    if all(isinstance(core, PortableAttention) for core in cores):
        return PortableSteps(network, batch, length)
    return EngineSteps(network, batch, length)


class EngineSteps:
    """Layers of Transformer Engine, which hold the norm before a projection, through megatron-core's own context.

    Args:
        network, batch, length: as for ``steps_of``.
    """

    def __init__(self, network: torch.nn.Module, batch: int, length: int) -> None:
        self._network = network
        self._cache = StaticInferenceContext(max_batch_size=batch, max_sequence_length=length)

    @torch.inference_mode()
    def logits(self, tokens: Tensor) -> Tensor:
        """As ``Steps`` says."""
        start, length = self._cache.sequence_len_offset, tokens.shape[1]
        positions = torch.arange(start, start + length, device=tokens.device).expand_as(tokens)
        found: Tensor = self._network(
            tokens, positions, None, inference_context=self._cache, runtime_gather_output=True
        )  # [b, 1, v]
        self._cache.sequence_len_offset += length
        return found[:, -1]


class PortableSteps:
    """Portable layers, one after another.

    Args:
        network, batch, length: as for ``steps_of``.
    """

    def __init__(self, network: torch.nn.Module, batch: int, length: int) -> None:
        self._network: Any = network
        config = self._network.config
        self._groups, self._width = config.num_query_groups, config.kv_channels
        angles = self._network.rotary_pos_emb(length)[:, :, None]  # [t, 1, 1, 1, d], the same in both halves
        kind = {"dtype": config.params_dtype, "device": angles.device}
        self._cos = angles.cos().to(config.params_dtype)
        # The first half of a rotated vector has minus the sine of the second, the second plus that of the first.
        signs = torch.tensor([-1.0, 1.0], **kind).repeat_interleave(self._width // 2)
        self._sin = angles.sin().to(config.params_dtype) * signs
        shape = (len(self._network.decoder.layers), batch, self._groups, length, self._width)
        self._keys, self._values = torch.empty(shape, **kind), torch.empty(shape, **kind)  # [l, b, g, t, d]
        self._done = 0

    @torch.inference_mode()
    def logits(self, tokens: Tensor) -> Tensor:
        """As ``Steps`` says."""
        network, start, end = self._network, self._done, self._done + tokens.shape[1]
        positions = torch.arange(start, end, device=tokens.device).expand_as(tokens)
        hidden = network.embedding(input_ids=tokens, position_ids=positions)  # [s, b, h]
        for number, layer in enumerate(network.decoder.layers):
            hidden = hidden + self._attend(layer.self_attention, layer.input_layernorm(hidden), number)
            hidden = hidden + layer.mlp(layer.pre_mlp_layernorm(hidden))[0]
        self._done = end
        last = network.decoder.final_layernorm(hidden[-1])  # [b, h]
        shared = network.share_embeddings_and_output_weights
        weight = network.shared_embedding_or_output_weight() if shared else None
        found: Tensor = network.output_layer(last, weight=weight)[0]
        return found

    def _attend(self, attention: Any, hidden: Tensor, number: int) -> Tensor:
        """Attention of one layer to the cache, which its own keys and values join: [s, b, h] -> [s, b, h]."""
        length, batch = hidden.shape[:2]
        start, end = self._done, self._done + length
        heads = attention.linear_qkv(hidden)[0].view(
            length, batch, self._groups, -1, self._width
        )  # queries, key, value
        turned = self._rotate(_normed(attention, heads), start, end)
        keys, values = self._keys[number], self._values[number]
        keys[:, :, start:end] = turned[..., -1, :].permute(1, 2, 0, 3)
        values[:, :, start:end] = heads[..., -1, :].permute(1, 2, 0, 3)
        core: PortableAttention = attention.core_attention
        if length == 1:
            first = 0 if core.window is None else max(0, start - core.window)
            seen = F.scaled_dot_product_attention(
                turned[0, :, :, :-1], keys[:, :, first:end], values[:, :, first:end], scale=core.scale
            )  # [b, g, n / g, d]
            seen = seen.reshape(1, batch, -1)
        else:
            query = turned[..., :-1, :].flatten(2, 3)  # [s, b, n, d]
            seen = core(query, *(cached[:, :, :end].permute(2, 0, 1, 3) for cached in (keys, values)), None)
        projected: Tensor = attention.linear_proj(seen)[0]
        return projected

    def _rotate(self, heads: Tensor, start: int, end: int) -> Tensor:
        """Rotate [s, b, g, n / g + 1, d] by the angles of their positions (Su et al., 2021, arXiv:2104.09864)."""
        other = heads.roll(self._width // 2, -1).mul_(self._sin[start:end])
        return (heads * self._cos[start:end]).add_(other)


def _normed(attention: Any, heads: Tensor) -> Tensor:
    """Queries and the key of each group [s, b, g, n / g + 1, d], with the norms that the family has for them."""
    if attention.q_layernorm is None or isinstance(attention.q_layernorm, IdentityOp):  # 0.19 and 0.16
        return heads[..., :-1, :]
    return torch.cat([attention.q_layernorm(heads[..., :-2, :]), attention.k_layernorm(heads[..., -2:-1, :])], dim=-2)
