"""MixtralForCausalLM: experts, and one window for all layers or none."""

from megatron_ko.config import ModelConfig
from megatron_ko.convert.families.base import Family, HfConfig, ModelFields
from megatron_ko.convert.families.common import experts, plain_experts
from megatron_ko.errors import ConvertError


def experts_to_hf(model: ModelConfig) -> HfConfig:
    """Mixtral's fields of the experts.

    Raises:
        ConvertError: the router or the experts do what Mixtral's do not.
    """
    moe = plain_experts(model)
    if moe.softmax_before_topk:
        raise ConvertError(
            "Mixtral's experts of a token have weights that add up to 1",
            got="softmax_before_topk",
            expected="a softmax over the chosen experts",
            remedy="family qwen3_moe has both",
        )
    return {
        "num_local_experts": moe.num_experts,
        "num_experts_per_tok": moe.top_k,
        "router_aux_loss_coef": moe.aux_loss_coeff,
    }


def experts_from_hf(fields: HfConfig) -> ModelFields:
    """The moe section of Mixtral's fields."""
    return {
        "moe": {
            "num_experts": fields["num_local_experts"],
            "top_k": fields["num_experts_per_tok"],
            "aux_loss_coeff": fields.get("router_aux_loss_coef", 0.001),
        },
    }


def _to_hf(model: ModelConfig) -> HfConfig:
    longest = model.max_position_embeddings - 1
    windows = {None if window is None or window >= longest else window for window in model.windows or (None,)}
    (window,) = windows  # the configuration has been checked
    return {
        **experts_to_hf(model),
        "router_jitter_noise": 0.0,
        # A window of ours counts earlier tokens, theirs the present one too.
        "sliding_window": None if window is None else window + 1,
    }


def _from_hf(fields: HfConfig) -> ModelFields:
    window = fields.get("sliding_window")
    return {
        **experts_from_hf(fields),
        "windows": None if window is None else [window - 1] * fields["num_hidden_layers"],
    }


MIXTRAL = Family(
    model_type="mixtral",
    architecture="MixtralForCausalLM",
    layers=experts("block_sparse_moe.gate", "block_sparse_moe.experts.{expert}", ("w1", "w3", "w2")),
    to_hf=_to_hf,
    from_hf=_from_hf,
    honoured=frozenset(("num_local_experts", "num_experts_per_tok", "router_aux_loss_coef", "sliding_window")),
    required={"router_jitter_noise": (0.0, 0)},
)
