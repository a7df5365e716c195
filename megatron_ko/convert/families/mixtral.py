"""MixtralForCausalLM: experts, and one window for all layers or none."""

from megatron_ko.config import ModelConfig
from megatron_ko.convert.families.base import Family, Fields
from megatron_ko.convert.families.common import experts
from megatron_ko.errors import ConvertError


def _to_hf(model: ModelConfig) -> Fields:
    assert model.moe is not None
    windows = set(model.windows or (None,))
    if len(windows) > 1:
        raise ConvertError(
            "MixtralForCausalLM has one window for all layers",
            got=f"windows {sorted(windows, key=str)}",
            expected="the same window everywhere, or a context that no window cuts",
            remedy="export it as keural, with its own modelling file",
        )
    (window,) = windows
    return {
        "num_local_experts": model.moe.num_experts,
        "num_experts_per_tok": model.moe.top_k,
        "router_aux_loss_coef": model.moe.aux_loss_coeff,
        "router_jitter_noise": 0.0,
        # A window of ours counts earlier tokens, theirs the present one too.
        "sliding_window": None if window is None else window + 1,
    }


def _from_hf(fields: Fields) -> Fields:
    window = fields.get("sliding_window")
    return {
        "windows": None if window is None else [window - 1] * fields["num_hidden_layers"],
        "moe": {
            "num_experts": fields["num_local_experts"],
            "top_k": fields["num_experts_per_tok"],
            "aux_loss_coeff": fields.get("router_aux_loss_coef", 0.001),
        },
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
