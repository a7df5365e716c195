"""Qwen3ForCausalLM and Qwen3MoeForCausalLM: MOAI, and this project's own mixture of experts."""

from megatron_ko.config import ModelConfig
from megatron_ko.convert.families.base import Family, HfConfig, ModelFields
from megatron_ko.convert.families.common import DENSE, experts, plain_experts
from megatron_ko.errors import ConvertError

# A folder may give a width for windows and not use them.
_FULL_ATTENTION = {"attention_bias": (False,), "use_sliding_window": (False, None)}


def _attention_to_hf(model: ModelConfig) -> HfConfig:
    if any(window is not None for window in model.windows or ()):
        raise ConvertError(
            f"family {model.family} is converted with full attention only", got=f"windows {list(model.windows or ())}"
        )
    return {"attention_bias": False, "use_sliding_window": False}


def _experts_to_hf(model: ModelConfig) -> HfConfig:
    moe = plain_experts(model)
    return {
        **_attention_to_hf(model),
        "num_experts": moe.num_experts,
        "num_experts_per_tok": moe.top_k,
        "moe_intermediate_size": model.ffn_hidden_size,
        "norm_topk_prob": not moe.softmax_before_topk,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "router_aux_loss_coef": moe.aux_loss_coeff,
    }


def _experts_from_hf(fields: HfConfig) -> ModelFields:
    return {
        "ffn_hidden_size": fields["moe_intermediate_size"],
        "moe": {
            # transformers 5 writes the second name, and reads both.
            "num_experts": fields.get("num_experts") or fields["num_local_experts"],
            "top_k": fields["num_experts_per_tok"],
            "softmax_before_topk": not fields.get("norm_topk_prob", False),
            "aux_loss_coeff": fields.get("router_aux_loss_coef", 0.001),
        },
    }


QWEN3 = Family(
    model_type="qwen3",
    architecture="Qwen3ForCausalLM",
    layers=DENSE,
    to_hf=_attention_to_hf,
    honoured=frozenset(("sliding_window",)),
    required=_FULL_ATTENTION,
)
QWEN3_MOE = Family(
    model_type="qwen3_moe",
    architecture="Qwen3MoeForCausalLM",
    layers=experts("mlp.gate", "mlp.experts.{expert}", ("gate_proj", "up_proj", "down_proj")),
    to_hf=_experts_to_hf,
    from_hf=_experts_from_hf,
    honoured=frozenset(
        (
            "sliding_window",
            "num_experts",
            "num_local_experts",
            "num_experts_per_tok",
            "moe_intermediate_size",
            "norm_topk_prob",
            "router_aux_loss_coef",
        )
    ),
    required={**_FULL_ATTENTION, "decoder_sparse_step": (1,), "mlp_only_layers": ([], None)},
)
