"""Builds megatron-core's TransformerConfig from the configuration; nothing else does."""

from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.transformer import TransformerConfig

from megatron_ko.config import ParallelConfig
from megatron_ko.models.blueprint import Blueprint
from megatron_ko.models.context_parallel import check_exchange
from megatron_ko.models.memory import memory_settings
from megatron_ko.models.moe import moe_settings
from megatron_ko.models.overlap import overlap_settings
from megatron_ko.models.precision import precision_settings
from megatron_ko.models.rope import softmax_scale
from megatron_ko.models.specs import has_fused_weight_gradient, uses_transformer_engine
from megatron_ko.parallel.platform import get_platform

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def transformer_config(blueprint: Blueprint) -> TransformerConfig:
    """The TransformerConfig of a decoder: RMSNorm, SwiGLU, rotary positions, grouped-query attention, no biases.

    It does not contain windows: megatron-core's pattern supports only one width (``models/windows.py``).

    Raises:
        ConfigError: ``precision.backend`` is not installed, or the layers do not support the layout.
    """
    model, dtype = blueprint.model, blueprint.precision.dtype
    fused = uses_transformer_engine(blueprint.precision.layer_backend)
    check_exchange(blueprint, fused)
    return TransformerConfig(
        num_layers=model.num_layers,
        hidden_size=model.hidden_size,
        ffn_hidden_size=model.ffn_hidden_size,
        num_attention_heads=model.num_attention_heads,
        num_query_groups=model.query_groups,
        kv_channels=model.kv_channels,
        normalization="RMSNorm",
        layernorm_epsilon=model.norm_eps,
        gated_linear_unit=True,
        activation_func=F.silu,
        add_bias_linear=False,
        qk_layernorm=model.qk_norm,
        softmax_scale=softmax_scale(model.rope, model.kv_channels),
        hidden_dropout=model.hidden_dropout,
        attention_dropout=model.attention_dropout,
        # Weights come from models/initialise.py. megatron-core's own initialisation still has to run, because it marks
        # the parameters that are split over tensor-parallel ranks.
        init_method=_leave_as_allocated,
        output_layer_init_method=_leave_as_allocated,
        embedding_init_method=_leave_as_allocated,
        fp16=dtype == "fp16",
        bf16=dtype == "bf16",
        params_dtype=DTYPES[dtype],
        pipeline_dtype=DTYPES[dtype],
        # The loss function returns (sum, count); gradients are divided once, by the global count.
        calculate_per_token_loss=True,
        # These need Transformer Engine or torch.compile; on a CPU, compiling would cost more than it saves.
        bias_activation_fusion=fused,
        bias_dropout_fusion=fused,
        apply_rope_fusion=fused,
        masked_softmax_fusion=False,
        gradient_accumulation_fusion=has_fused_weight_gradient(),
        **_parallel(blueprint.parallel),
        **moe_settings(blueprint),
        **precision_settings(blueprint),
        **memory_settings(blueprint),
        **overlap_settings(blueprint),
    )


def _leave_as_allocated(weight: torch.Tensor) -> torch.Tensor:
    return weight


def _parallel(parallel: ParallelConfig) -> dict[str, Any]:
    interleaved = parallel.virtual_pipeline > 1
    return {
        "tensor_model_parallel_size": parallel.tensor,
        "pipeline_model_parallel_size": parallel.pipeline,
        "virtual_pipeline_model_parallel_size": parallel.virtual_pipeline if interleaved else None,
        "context_parallel_size": parallel.context,
        "cp_comm_type": parallel.context_exchange,
        "expert_model_parallel_size": parallel.expert,
        "expert_tensor_parallel_size": parallel.expert_tensor_size,
        "num_layers_in_first_pipeline_stage": parallel.first_stage_layers,
        "num_layers_in_last_pipeline_stage": parallel.last_stage_layers,
        "account_for_embedding_in_pipeline_split": parallel.embedding_as_layer,
        "account_for_loss_in_pipeline_split": parallel.loss_as_layer,
        "sequence_parallel": parallel.sequence_parallel,
        # Activations are freed as soon as they are sent to the next stage. The interleaved schedule does not wait until
        # the send has completed.
        "deallocate_pipeline_outputs": get_platform().keeps_queued_sends or not interleaved,
        # Without overlap, a stage sends in both directions in one batch. With two interleaved stages, each is both the
        # previous and the next one of the other: both messages have the same endpoints, and would be swapped.
        "overlap_p2p_comm": interleaved,
        "batch_p2p_comm": not interleaved,
    }
