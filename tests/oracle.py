"""The weights of a built model as global tensors, and in transformers' model of the same network.

Our layout is undone here, independently of the package, so that a mistake in it cannot hide.
"""

from collections.abc import Iterable, Sequence

import torch
from peer_models import transformers_model
from torch import Tensor
from transformers import PreTrainedModel

from megatron_ko.config import ModelConfig
from megatron_ko.models.parameter_policy import sharded_parts

# Name, global shape and offset of a part, and the part.
Pieces = list[tuple[str, tuple[int, ...], tuple[int, ...], Tensor]]


def pieces_of(chunks: Sequence[torch.nn.Module]) -> Pieces:
    """This rank's parameters as parts of global tensors, stacked axes included."""
    found = []
    for part in sharded_parts(chunks):
        data = part.data.detach().float().clone()
        stacked = data.reshape((1,) * part.prepend_axis_num + data.shape)
        found.append((part.key, part.global_shape, part.global_offset, stacked))
    return found


def assemble(pieces: Iterable[tuple[str, tuple[int, ...], tuple[int, ...], Tensor]]) -> dict[str, Tensor]:
    """Global tensors from the parts of all ranks."""
    whole: dict[str, Tensor] = {}
    for key, shape, offset, part in pieces:
        target = whole.setdefault(key, torch.full(shape, float("nan")))
        region = target[tuple(slice(start, start + size) for start, size in zip(offset, part.shape, strict=True))]
        known = ~torch.isnan(region)
        # Replicas are reduced in different orders: equal up to rounding.
        torch.testing.assert_close(region[known], part[known], rtol=1e-4, atol=1e-6)
        region.copy_(part)
    assert not any(torch.isnan(tensor).any() for tensor in whole.values()), "a part is missing"
    return whole


def to_transformers(model: ModelConfig, weights: dict[str, Tensor]) -> PreTrainedModel:
    """transformers' model with our global weights, in evaluation mode."""
    peer = transformers_model(model)
    missing, unexpected = peer.load_state_dict(renamed(model, weights), strict=False)
    assert not unexpected and set(missing) <= ({"lm_head.weight"} if model.tie_embeddings else set())
    return peer.eval()


def renamed(model: ModelConfig, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Our global weights under transformers' names, in its shapes."""
    state = {
        "model.embed_tokens.weight": weights["embedding.word_embeddings.weight"][: model.vocab_size],
        "model.norm.weight": weights["decoder.final_layernorm.weight"],
    }
    if not model.tie_embeddings:
        state["lm_head.weight"] = weights["output_layer.weight"][: model.vocab_size]
    prefix = "decoder.layers."
    for number in range(model.num_layers):
        layer = {key.removeprefix(prefix): part[number] for key, part in weights.items() if key.startswith(prefix)}
        parts = _attention(model, layer) | (_experts(layer) if model.moe else _mlp(layer))
        state |= {f"model.layers.{number}.{name}": part for name, part in parts.items()}
    return state


def _attention(model: ModelConfig, layer: dict[str, Tensor]) -> dict[str, Tensor]:
    """Queries, keys and values of a layer: ours are one matrix, by group: its queries, its key, its value."""
    groups, width, hidden = model.query_groups, model.kv_channels, model.hidden_size
    heads = model.num_attention_heads // groups
    grouped = layer["self_attention.linear_qkv.weight"].view(groups, heads + 2, width, hidden)
    query, key, value = grouped.split([heads, 1, 1], dim=1)
    parts = {
        "input_layernorm.weight": layer["self_attention.linear_qkv.layer_norm_weight"],
        "self_attn.q_proj.weight": query.reshape(-1, hidden),
        "self_attn.k_proj.weight": key.reshape(-1, hidden),
        "self_attn.v_proj.weight": value.reshape(-1, hidden),
        "self_attn.o_proj.weight": layer["self_attention.linear_proj.weight"],
    }
    if model.qk_norm:
        parts["self_attn.q_norm.weight"] = layer["self_attention.q_layernorm.weight"]
        parts["self_attn.k_norm.weight"] = layer["self_attention.k_layernorm.weight"]
    return parts


def _mlp(layer: dict[str, Tensor]) -> dict[str, Tensor]:
    gate, up = layer["mlp.linear_fc1.weight"].chunk(2)
    return {
        "post_attention_layernorm.weight": layer["mlp.linear_fc1.layer_norm_weight"],
        "mlp.gate_proj.weight": gate,
        "mlp.up_proj.weight": up,
        "mlp.down_proj.weight": layer["mlp.linear_fc2.weight"],
    }


def _experts(layer: dict[str, Tensor]) -> dict[str, Tensor]:
    """Experts are stacked in both; gate and up are one matrix in both."""
    return {
        "post_attention_layernorm.weight": layer["pre_mlp_layernorm.weight"],
        "mlp.gate.weight": layer["mlp.router.weight"],
        "mlp.experts.gate_up_proj": layer["mlp.experts.experts.linear_fc1.weight"],
        "mlp.experts.down_proj": layer["mlp.experts.experts.linear_fc2.weight"],
    }
