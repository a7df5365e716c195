"""The modules of a layer: Transformer Engine's, or this project's portable ones, which need only PyTorch."""

import importlib.util
from collections.abc import Sequence

from megatron.core.fusions.fused_bias_dropout import get_bias_dropout_add
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_decoder_block_spec, get_mlp_module_spec
from megatron.core.tensor_parallel import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer import TransformerConfig
from megatron.core.transformer.attention import SelfAttention, SelfAttentionSubmodules
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.identity_op import IdentityOp
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules, get_num_layers_to_build
from megatron.core.transformer.transformer_layer import TransformerLayer, TransformerLayerSubmodules

from megatron_ko.config import PrecisionConfig
from megatron_ko.errors import ConfigError
from megatron_ko.models.attention import PortableAttention
from megatron_ko.models.attention_choice import watch_choice
from megatron_ko.models.moe import portable_experts, use_router
from megatron_ko.models.norm import RMSNorm
from megatron_ko.models.packed_documents import keep_documents_apart
from megatron_ko.models.windows import set_windows
from megatron_ko.parallel.compat import INSTALL_ENGINE
from megatron_ko.parallel.platform import get_platform


def uses_transformer_engine(backend: str) -> bool:
    """Resolve ``precision.backend``: "auto" means Transformer Engine if it is installed and CUDA is used.

    Raises:
        ConfigError: Transformer Engine is requested by name, but cannot be used here.
    """
    installed = importlib.util.find_spec("transformer_engine") is not None
    on_cuda = get_platform().runs_fused_kernels
    if backend == "transformer_engine" and not (installed and on_cuda):
        raise ConfigError(
            "precision.backend=transformer_engine cannot be used here",
            got="no CUDA device" if installed else "transformer_engine is not installed",
            expected="a CUDA device and the package transformer-engine",
            remedy=f"precision.backend=auto, or {INSTALL_ENGINE}",
        )
    return backend != "portable" and installed and on_cuda


def has_fused_weight_gradient() -> bool:
    """Whether apex's kernel that adds weight gradients directly to the fp32 buffer is installed (CUDA only)."""
    installed = importlib.util.find_spec("fused_weight_gradient_mlp_cuda") is not None
    return installed and get_platform().runs_fused_kernels


def decoder_spec(
    config: TransformerConfig, precision: PrecisionConfig, vp_stage: int | None, windows: Sequence[int | None] | None
) -> TransformerBlockSubmodules:
    """Layers and final norm of one model chunk.

    Args:
        config: the model.
        precision: the back end, and whether its attention may be unfused.
        vp_stage: index of the chunk on this pipeline stage; None without interleaving.
        windows: ``model.windows``.
    """
    if uses_transformer_engine(precision.layer_backend):
        spec = get_gpt_decoder_block_spec(config, use_transformer_engine=True, vp_stage=vp_stage)
        keep_documents_apart(spec)
        watch_choice(spec, precision.unfused_attention)
        for layer in spec.layer_specs if config.num_moe_experts else []:
            use_router(layer.submodules.mlp)
    else:
        num_layers = get_num_layers_to_build(config, vp_stage=vp_stage)
        spec = TransformerBlockSubmodules(layer_specs=[_portable_layer(config)] * num_layers, layer_norm=RMSNorm)
    set_windows(spec, windows)
    return spec


def _portable_layer(config: TransformerConfig) -> ModuleSpec:
    head_norm = RMSNorm if config.qk_layernorm else IdentityOp
    experts = config.num_moe_experts
    # Transformer Engine stores a norm in the linear layer after it (not with experts); use its names in checkpoints.
    stored = {"input_layernorm.": "self_attention.linear_qkv.layer_norm_"}
    if not experts:
        stored["pre_mlp_layernorm."] = "mlp.linear_fc1.layer_norm_"
    attention = ModuleSpec(
        module=SelfAttention,
        params={"attn_mask_type": AttnMaskType.causal},
        submodules=SelfAttentionSubmodules(
            linear_qkv=ColumnParallelLinear,
            core_attention=PortableAttention,
            linear_proj=RowParallelLinear,
            q_layernorm=head_norm,
            k_layernorm=head_norm,
        ),
    )
    return ModuleSpec(
        module=TransformerLayer,
        submodules=TransformerLayerSubmodules(
            input_layernorm=RMSNorm,
            self_attention=attention,
            self_attn_bda=get_bias_dropout_add,
            pre_mlp_layernorm=RMSNorm,
            mlp=portable_experts(experts) if experts else get_mlp_module_spec(use_te=False),
            mlp_bda=get_bias_dropout_add,
            sharded_state_dict_keys_map=stored,
        ),
    )
