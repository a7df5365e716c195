"""Builds the model chunks of this rank, with their initial weights."""

import torch
from megatron.core.transformer import TransformerConfig
from megatron.core.transformer.module import Float16Module

from megatron_ko.config import TrainingConfig
from megatron_ko.models.architectures import transformer_config
from megatron_ko.models.blueprint import Blueprint
from megatron_ko.models.decoder import Decoder
from megatron_ko.models.fp8_weights import initial_values
from megatron_ko.models.initialise import initialise_weights
from megatron_ko.models.mxfp8.layers import emulate_mxfp8
from megatron_ko.models.rope import ScaledRotaryEmbedding
from megatron_ko.models.specs import decoder_spec, uses_transformer_engine
from megatron_ko.parallel.groups import Groups
from megatron_ko.parallel.platform import get_platform

# 8.8 GiB of an H200 and 5 GiB of an H100: 16,384 tokens of 64,000 ids take 3.9 GiB in one piece.
_LOGITS_SHARE = 1 / 16
_HOST_LOGITS = 256 << 20


def build_model(blueprint: Blueprint, groups: Groups, seed: int) -> list[torch.nn.Module]:
    """Build this rank's model chunks, one per virtual pipeline stage, on its device and in the configured precision.

    A chunk is called as ``chunk(tokens, position_ids, attention_mask, labels=labels)`` with [b, s] tensors. On the last
    pipeline stage it returns losses [b, s] (or, without labels, logits [b, s, v]; v is this rank's part of the padded
    vocabulary), on the others hidden states [s, b, h]. The weights depend on ``seed`` only, not on the layout.

    Random states must have been seeded (``parallel.seed.seed_everything``).

    Raises:
        ConfigError: ``precision.backend`` asks for what is not installed.
    """
    chunks = [chunk.to(get_platform().device) for chunk in build_structure(blueprint, groups)]
    with initial_values(chunks):
        initialise_weights(chunks, blueprint.model, seed)
    if blueprint.precision.dtype != "fp32":
        chunks = [Float16Module(chunk.config, chunk) for chunk in chunks]
    return chunks


def build_structure(blueprint: Blueprint, groups: Groups) -> list[torch.nn.Module]:
    """This rank's model chunks as in ``build_model``, but with uninitialised weights.

    Raises:
        ConfigError: ``precision.backend`` asks for what is not installed.
    """
    settings = transformer_config(blueprint)
    return [_build_chunk(blueprint, settings, groups, index) for index in range(groups.vp_size)]


def _build_chunk(blueprint: Blueprint, settings: TransformerConfig, groups: Groups, index: int) -> torch.nn.Module:
    model, precision = blueprint.model, blueprint.precision
    vp_stage = index if groups.vp_size > 1 else None
    layers = decoder_spec(settings, precision, vp_stage, model.windows)
    emulate_mxfp8(layers, precision, settings, vp_stage)
    chunk: torch.nn.Module = Decoder(
        token_ids=model.vocab_size,
        logits_limit=_logits_limit(blueprint.training),
        fused_loss=precision.dtype != "fp16" and uses_transformer_engine(precision.layer_backend),
        config=settings,
        transformer_layer_spec=layers,
        vocab_size=model.padded_vocab_size(groups.tp_size),
        max_sequence_length=model.max_position_embeddings,
        pre_process=groups.is_first_stage and index == 0,
        post_process=groups.is_last_stage and index == groups.vp_size - 1,
        parallel_output=True,
        share_embeddings_and_output_weights=model.tie_embeddings,
        position_embedding_type="rope",
        rotary_base=model.rope.theta,
        pg_collection=groups.pg,
        vp_stage=vp_stage,
    )
    if model.rope.scaling is not None:
        chunk.rotary_pos_emb = ScaledRotaryEmbedding(model.rope, model.kv_channels, groups.pg.cp)
    return chunk


def _logits_limit(training: TrainingConfig | None) -> int:
    """Bytes for fp32 logits. The default share of GPU memory never varies, because the piece size affects rounding."""
    if training is not None and training.logits_mib is not None:
        return training.logits_mib << 20
    total = get_platform().total_memory
    return _HOST_LOGITS if total is None else int(total * _LOGITS_SHARE)
