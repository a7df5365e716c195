"""Mixture of experts: settings for megatron-core, and the modules of such a layer."""

import importlib.util
from functools import partial
from typing import Any, TypeAlias

from megatron.core.models.gpt.gpt_layer_specs import get_mlp_module_spec
from megatron.core.transformer.moe.moe_layer import MoESubmodules
from megatron.core.transformer.spec_utils import ModuleSpec

from megatron_ko.errors import ConfigError
from megatron_ko.models.blueprint import Blueprint
from megatron_ko.models.experts import GroupedExperts
from megatron_ko.models.router import Router
from megatron_ko.parallel.platform import get_platform

_BALANCING = {"none": "none", "batch": "aux_loss", "sequence": "seq_aux_loss", "global": "global_aux_loss"}
MlpSpec: TypeAlias = ModuleSpec | partial[Any]  # of megatron-core 0.16, of 0.19


def moe_settings(blueprint: Blueprint) -> dict[str, Any]:
    """The fields of TransformerConfig that describe experts, router and dispatcher; none for a dense model.

    Raises:
        ConfigError: ``parallel.dispatcher`` is not installed.
    """
    moe = blueprint.model.moe
    if moe is None:
        return {}
    _check_dispatcher(blueprint.parallel.dispatcher)
    balanced = moe.aux_loss != "none" and moe.aux_loss_coeff > 0
    quantised = blueprint.precision.recipe == "mxfp8" and not blueprint.precision.mxfp8.emulate
    return {
        "num_moe_experts": moe.num_experts,
        "moe_ffn_hidden_size": blueprint.model.ffn_hidden_size,
        "moe_shared_expert_intermediate_size": moe.shared_ffn_hidden_size or None,
        "moe_grouped_gemm": True,
        "moe_router_topk": moe.top_k,
        "moe_router_score_function": moe.score,
        "moe_router_pre_softmax": moe.softmax_before_topk,
        "moe_router_topk_scaling_factor": moe.topk_scale if moe.topk_scale != 1.0 else None,
        # Scores often differ very little, so they are computed in fp32, whatever the precision of the layers.
        "moe_router_dtype": "fp32",
        "moe_router_load_balancing_type": _BALANCING[moe.aux_loss] if balanced else "none",
        "moe_aux_loss_coeff": moe.aux_loss_coeff if balanced else 0.0,
        "moe_z_loss_coeff": moe.z_loss_coeff or None,
        "moe_router_enable_expert_bias": moe.expert_bias,
        "moe_router_bias_update_rate": moe.expert_bias_update_rate,
        "moe_expert_capacity_factor": moe.capacity_factor,
        "moe_token_dispatcher_type": blueprint.parallel.dispatcher,
        # Every expert gets a multiple of the block size, except under allgather, which gathers all tokens.
        "moe_router_padding_for_quantization": quantised and blueprint.parallel.dispatcher != "allgather",
    }


def _check_dispatcher(dispatcher: str) -> None:
    installed = importlib.util.find_spec("deep_ep") is not None
    if dispatcher == "flex" and not (installed and get_platform().runs_fused_kernels):
        raise ConfigError(
            "parallel.dispatcher=flex cannot be used here",
            got="no CUDA device" if installed else "deep_ep is not installed",
            expected="a CUDA device and the package deep_ep (DeepEP)",
            remedy="parallel.dispatcher=alltoall, or install DeepEP (github.com/deepseek-ai/DeepEP)",
        )


def portable_experts(num_experts: int, experts: type[GroupedExperts] = GroupedExperts) -> MlpSpec:
    """The mixture of experts of a portable layer.

    Args:
        num_experts: experts of the layer, over all ranks.
        experts: what computes them.
    """
    spec: MlpSpec = get_mlp_module_spec(use_te=False, num_experts=num_experts)
    _submodules(spec).experts = experts
    use_router(spec)
    return spec


def use_router(spec: MlpSpec) -> None:
    """Use our router in a layer's mixture of experts, with either back end."""
    _submodules(spec).router = Router


def _submodules(spec: MlpSpec) -> MoESubmodules:
    parts = spec.keywords["submodules"] if isinstance(spec, partial) else spec.submodules
    assert isinstance(parts, MoESubmodules), parts
    return parts
