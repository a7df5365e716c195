"""Rules that families share: embeddings, attention, norms, dense and sparse feed-forward layers."""

from megatron_ko.config import ModelConfig, MoeConfig
from megatron_ko.convert.mapping import TensorRule, gate_up, query_key_value, same, vocabulary
from megatron_ko.errors import ConvertError

_LAYER = "decoder.layers."
_HF_LAYER = "model.layers.{layer}."

ENDS = (
    TensorRule("embedding.word_embeddings.weight", ("model.embed_tokens.weight",), vocabulary),
    TensorRule("decoder.final_layernorm.weight", ("model.norm.weight",), same("hidden")),
)
OUTPUT = (TensorRule("output_layer.weight", ("lm_head.weight",), vocabulary),)
ATTENTION = (
    TensorRule(
        f"{_LAYER}self_attention.linear_qkv.layer_norm_weight",
        (f"{_HF_LAYER}input_layernorm.weight",),
        same("hidden"),
    ),
    TensorRule(
        f"{_LAYER}self_attention.linear_qkv.weight",
        tuple(f"{_HF_LAYER}self_attn.{name}_proj.weight" for name in "qkv"),
        query_key_value,
    ),
    TensorRule(
        f"{_LAYER}self_attention.linear_proj.weight",
        (f"{_HF_LAYER}self_attn.o_proj.weight",),
        same("hidden", "queries"),
    ),
)
QK_NORM = tuple(
    TensorRule(f"{_LAYER}self_attention.{x}_layernorm.weight", (f"{_HF_LAYER}self_attn.{x}_norm.weight",), same("head"))
    for x in "qk"
)
DENSE = (
    TensorRule(
        f"{_LAYER}mlp.linear_fc1.layer_norm_weight",
        (f"{_HF_LAYER}post_attention_layernorm.weight",),
        same("hidden"),
    ),
    TensorRule(
        f"{_LAYER}mlp.linear_fc1.weight",
        (f"{_HF_LAYER}mlp.gate_proj.weight", f"{_HF_LAYER}mlp.up_proj.weight"),
        gate_up("ffn"),
    ),
    TensorRule(f"{_LAYER}mlp.linear_fc2.weight", (f"{_HF_LAYER}mlp.down_proj.weight",), same("hidden", "ffn")),
)


def experts(router: str, expert: str, names: tuple[str, str, str]) -> tuple[TensorRule, ...]:
    """The feed-forward layer of a mixture of experts.

    Args:
        router: name of the router within a layer.
        expert: name of one expert within a layer, with {expert} for its number.
        names: of its gate, up and down projection.
    """
    gate, up, down = (f"{_HF_LAYER}{expert}.{name}.weight" for name in names)
    return (
        TensorRule(
            f"{_LAYER}pre_mlp_layernorm.weight", (f"{_HF_LAYER}post_attention_layernorm.weight",), same("hidden")
        ),
        TensorRule(f"{_LAYER}mlp.router.weight", (f"{_HF_LAYER}{router}.weight",), same("experts", "hidden")),
        TensorRule(f"{_LAYER}mlp.experts.experts.linear_fc1.weight", (gate, up), gate_up("ffn")),
        TensorRule(f"{_LAYER}mlp.experts.experts.linear_fc2.weight", (down,), same("hidden", "ffn")),
    )


def plain_experts(model: ModelConfig) -> MoeConfig:
    """The moe section, of which transformers' classes compute only a part.

    Raises:
        ConvertError: the router or the experts do what none of these classes does.
    """
    moe = model.moe
    assert moe is not None
    odd = {
        f"score {moe.score}": moe.score != "softmax",
        f"topk_scale {moe.topk_scale}": moe.topk_scale != 1.0,
        f"shared_ffn_hidden_size {moe.shared_ffn_hidden_size}": moe.shared_ffn_hidden_size > 0,
        "expert_bias": moe.expert_bias,
    }
    if any(odd.values()):
        raise ConvertError(
            f"the class of family {model.family} in transformers cannot compute these experts",
            got=", ".join(name for name, there in odd.items() if there),
            expected="a softmax of the router's logits, and no other expert",
        )
    return moe


def with_shared_rules(layers: tuple[TensorRule, ...], model: ModelConfig) -> tuple[TensorRule, ...]:
    """The rules of a feed-forward part, with those of embedding, attention and output around them."""
    norms = QK_NORM if model.qk_norm else ()
    return (*ENDS, *ATTENTION, *norms, *layers, *(() if model.tie_embeddings else OUTPUT))
