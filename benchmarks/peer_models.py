"""The network of a configuration as transformers builds it: the peer of the benchmarks and the oracle of the tests."""

from typing import Any

from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from megatron_ko.config import ModelConfig, RopeConfig

_CLASSES: dict[str, tuple[type[PreTrainedConfig], type[PreTrainedModel]]] = {
    "llama": (LlamaConfig, LlamaForCausalLM),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM),
    "mixtral": (MixtralConfig, MixtralForCausalLM),
    "qwen3_moe": (Qwen3MoeConfig, Qwen3MoeForCausalLM),
    "keural": (MixtralConfig, MixtralForCausalLM),  # while all layers have the same window
}


def transformers_model(model: ModelConfig, **options: Any) -> PreTrainedModel:
    """The network with random weights; ``options`` go to transformers' configuration and win over it."""
    return _CLASSES[model.family][1](transformers_config(model, **options))


def transformers_config(model: ModelConfig, **options: Any) -> PreTrainedConfig:
    """transformers' configuration of the network."""
    scaling = model.rope.scaling
    longest = model.max_position_embeddings
    common = {
        "vocab_size": model.vocab_size,
        "hidden_size": model.hidden_size,
        "intermediate_size": model.ffn_hidden_size,
        "num_hidden_layers": model.num_layers,
        "num_attention_heads": model.num_attention_heads,
        "num_key_value_heads": model.query_groups,
        "head_dim": model.kv_channels,
        # transformers' dynamic scaling begins where its context ends.
        "max_position_embeddings": scaling.original_max_position_embeddings
        if scaling and scaling.type == "dynamic"
        else longest,
        "rope_parameters": rope_parameters(model.rope, model.kv_channels),
        "rms_norm_eps": model.norm_eps,
        "tie_word_embeddings": model.tie_embeddings,
        "initializer_range": model.init_std,
        "attn_implementation": "sdpa",
        "use_cache": False,
        "bos_token_id": None,
        "eos_token_id": None,
    }
    return _CLASSES[model.family][0](**common, **_windows(model), **_experts(model), **options)


def rope_parameters(rope: RopeConfig, head_dim: int) -> dict[str, Any]:
    """transformers' names of a rotary embedding. It has no fixed NTK scaling, which is a larger base."""
    scaling = rope.scaling
    if scaling is None:
        return {"rope_type": "default", "rope_theta": rope.theta}
    if scaling.type == "ntk":
        return {"rope_type": "default", "rope_theta": rope.theta * scaling.factor ** (head_dim / (head_dim - 2))}
    given = scaling.model_dump(exclude_none=True, exclude={"type"})
    if scaling.type == "dynamic":
        del given["original_max_position_embeddings"]
    return {"rope_type": scaling.type, "rope_theta": rope.theta, **given}


def _windows(model: ModelConfig) -> dict[str, Any]:
    """transformers counts the token itself; only Qwen3 has layers that differ, all windows being of one width."""
    if model.windows is None or set(model.windows) == {None}:
        return {}
    (width,) = {window for window in model.windows if window is not None}
    if model.family == "qwen3":
        kinds = ["full_attention" if window is None else "sliding_attention" for window in model.windows]
        return {"use_sliding_window": True, "sliding_window": width + 1, "layer_types": kinds}
    assert None not in model.windows, f"transformers has no {model.family} whose layers differ"
    return {"sliding_window": width + 1} | ({"use_sliding_window": True} if model.family == "qwen3_moe" else {})


def _experts(model: ModelConfig) -> dict[str, Any]:
    moe = model.moe
    if moe is None:
        return {}
    assert moe.score == "softmax" and not moe.shared_ffn_hidden_size and moe.topk_scale == 1.0
    if model.family == "qwen3_moe":
        return {
            "moe_intermediate_size": model.ffn_hidden_size,
            "num_experts": moe.num_experts,
            "num_experts_per_tok": moe.top_k,
            "norm_topk_prob": not moe.softmax_before_topk,
        }
    assert not moe.softmax_before_topk, "Mixtral's weights add up to 1"
    return {"num_local_experts": moe.num_experts, "num_experts_per_tok": moe.top_k}
