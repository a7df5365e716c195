"""megatron-core's data-parallel wrapper and optimizer, built from the configuration."""

import re
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from megatron.core.distributed import (
    DistributedDataParallel,
    DistributedDataParallelConfig,
    finalize_model_grads,
)
from megatron.core.optimizer import ChainedOptimizer, OptimizerConfig, ParamKey, get_megatron_optimizer
from megatron.core.optimizer.clip_grads import clip_grad_by_total_norm_fp32
from megatron.core.optimizer.optimizer_config import ParamWithNamePredicate
from megatron.core.transformer.moe.moe_layer import MoELayer
from megatron.core.utils import get_model_config

from megatron_ko.config import RunConfig
from megatron_ko.errors import ConfigError
from megatron_ko.models.parameter_policy import Factors, ParameterPolicy, named_parameters
from megatron_ko.models.precision import data_parallel_settings, optimizer_settings
from megatron_ko.parallel.groups import Groups
from megatron_ko.parallel.platform import get_platform
from megatron_ko.train.adam import install_portable_adam
from megatron_ko.train.agreement import gather_from_ranks
from megatron_ko.train.gradient_norm import install_accurate_norm


def wrap_data_parallel(config: RunConfig, chunks: Sequence[torch.nn.Module], groups: Groups) -> list[torch.nn.Module]:
    """Wrap every model chunk in megatron-core's DistributedDataParallel; gradients are reduced in fp32."""
    parallel = config.parallel
    _set_experts_apart(chunks)
    _add_gradients_in_layers(chunks)
    settings = DistributedDataParallelConfig(
        grad_reduce_in_fp32=True,
        use_distributed_optimizer=parallel.distributed_optimizer,
        overlap_grad_reduce=parallel.overlap_grad_reduce,
        overlap_param_gather=parallel.overlap_param_gather,
        check_for_nan_in_grad=False,  # the training step checks it, once for all ranks
        **data_parallel_settings(config.precision),
    )
    return [
        DistributedDataParallel(
            config=get_model_config(chunk),
            ddp_config=settings,
            module=chunk,
            # Otherwise buckets of later chunks would be reduced while the interleaved schedule needs the network.
            disable_bucketing=index > 0,
            pg_collection=groups.pg,
        )
        for index, chunk in enumerate(chunks)
    ]


def _set_experts_apart(chunks: Sequence[torch.nn.Module]) -> None:
    """Reduce experts over the ranks that hold the same ones, and give them a separate optimizer.

    megatron-core does this only with expert parallelism. A run without it could then not be continued with it, and if
    experts are split over other tensor ranks than the rest, gradients would be missing. Each tensor rank holds its own
    part of the experts, so the gradient norm has to count it on all of them, and not only on the first one, as 0.16
    does with Transformer Engine's experts.
    """
    for module in (module for chunk in chunks for module in chunk.modules() if isinstance(module, MoELayer)):
        for parameter in module.experts.parameters():
            parameter.allreduce = False
            parameter.tensor_model_parallel = True


def _add_gradients_in_layers(chunks: Sequence[torch.nn.Module]) -> None:
    """Make Transformer Engine's layers add weight gradients to the fp32 buffer as part of the matrix product.

    megatron-core's setting for this also requires an apex kernel, which only its own linear layers need.
    """
    for module in (module for chunk in chunks for module in chunk.modules()):
        if getattr(module, "fuse_wgrad_accumulation", None) is False:
            module.fuse_wgrad_accumulation = True


Treatment = Mapping[torch.nn.Parameter, Factors]


def treat(policy: ParameterPolicy, chunks: Sequence[torch.nn.Module]) -> Treatment:
    """Factors of this rank's parameters; the chunks must not be wrapped yet. A collective.

    Raises:
        ConfigError: a pattern of ``optim.groups`` matches no trained parameter on any rank.
    """
    named = [(name, parameter) for name, parameter in named_parameters(chunks) if parameter.requires_grad]
    names = sorted({name for part in gather_from_ranks([name for name, _ in named]) for name in part})
    if strange := policy.unmatched(names):
        raise ConfigError(
            "optim.groups: a pattern matches no parameter",
            got=", ".join(strange),
            expected="names such as " + ", ".join(sorted({re.sub(r"\.\d+\.", ".*.", name) for name in names})),
            remedy="correct the pattern, or leave it out",
        )
    return {parameter: policy.factors(name) for name, parameter in named}


def _overrides(treatment: Treatment) -> dict[ParamKey, dict[str, float]]:
    """Parameter groups for megatron-core: one for each pair of factors other than (1, 1)."""

    def having(factors: Factors) -> ParamWithNamePredicate:
        return ParamWithNamePredicate(str(factors), lambda parameter, _: treatment[parameter] == factors)

    special = sorted({factors for factors in treatment.values() if factors != Factors(1.0, 1.0)})
    return {
        ParamKey(with_name_predicate=having(factors)): {
            **({"lr_mult": factors.lr} if factors.lr != 1 else {}),
            **({"wd_mult": factors.decay} if factors.decay != 1 else {}),
        }
        for factors in special
    }


def build_optimizer(
    config: RunConfig, chunks: list[torch.nn.Module], groups: Groups, treatment: Treatment
) -> ChainedOptimizer:
    """AdamW with fp32 master weights for wrapped model chunks.

    Also connects the chunks' configuration to it: loss scaling, gradient reduction and their overlap.
    """
    install_portable_adam()
    install_accurate_norm()
    optim, precision = config.optim, config.precision
    settings = OptimizerConfig(
        optimizer="adam",
        lr=optim.lr,
        min_lr=optim.lr * optim.min_lr_ratio,
        weight_decay=optim.weight_decay,
        adam_beta1=optim.beta1,
        adam_beta2=optim.beta2,
        adam_eps=optim.eps,
        clip_grad=optim.clip_grad,
        bf16=precision.dtype == "bf16",
        fp16=precision.dtype == "fp16",
        params_dtype={"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision.dtype],
        initial_loss_scale=precision.initial_loss_scale,
        min_loss_scale=precision.min_loss_scale,
        loss_scale_window=precision.loss_scale_window,
        hysteresis=precision.loss_scale_hysteresis,
        use_distributed_optimizer=config.parallel.distributed_optimizer,
        overlap_param_gather=config.parallel.overlap_param_gather,
        **optimizer_settings(precision),
        **_offload(optim.offload),
    )
    optimizer = get_megatron_optimizer(
        settings, chunks, _overrides(treatment), use_gloo_process_groups=False, pg_collection=groups.pg
    )
    for part in optimizer.chained_optimizers:
        # Allocated now, so that a checkpoint has the same content before and after the first update.
        if not part.is_stub_optimizer and part.init_state_fn is not None:
            part.init_state_fn(part.optimizer, settings)
    _wire(config, chunks, optimizer)
    return optimizer


def _offload(share: float) -> dict[str, Any]:
    if share == 0:
        return {}
    if not get_platform().runs_fused_kernels:
        raise ConfigError(
            "the optimizer is in host memory already",
            got=f"optim.offload {share} on {get_platform().device_name}",
            expected="a CUDA device, or 0",
            remedy="optim.offload=0",
        )
    return {
        "optimizer_cpu_offload": True,
        "optimizer_offload_fraction": share,
        "overlap_cpu_optimizer_d2h_h2d": True,
        "use_precision_aware_optimizer": True,
    }


def _wire(config: RunConfig, chunks: list[torch.nn.Module], optimizer: ChainedOptimizer) -> None:
    parallel = config.parallel
    model_config = get_model_config(chunks[0])
    model_config.finalize_model_grads_func = finalize_model_grads
    if config.precision.dtype == "fp16":
        # Gradients of a sum over thousands of tokens would overflow fp16 at any useful scale. The mean over a
        # micro-batch is propagated instead, and the denominator counts micro-batches.
        tokens = config.training.micro_batch_size * config.data.sequence_length
        model_config.grad_scale_func = partial(_scale_mean, optimizer, tokens)
        model_config.finalize_model_grads_func = partial(_finalize_mean, tokens)
    if parallel.overlap_grad_reduce:
        model_config.no_sync_func = _one_or_many([chunk.no_sync for chunk in chunks])
        model_config.grad_sync_func = _one_or_many([chunk.start_grad_sync for chunk in chunks])
    if parallel.overlap_param_gather:
        model_config.param_sync_func = _one_or_many([chunk.start_param_sync for chunk in chunks])


def _scale_mean(optimizer: ChainedOptimizer, tokens: int, loss: torch.Tensor) -> torch.Tensor:
    return optimizer.scale_loss(loss) / tokens


def _finalize_mean(tokens: int, chunks: list[torch.nn.Module], num_tokens: torch.Tensor, **kwargs: Any) -> None:
    finalize_model_grads(chunks, num_tokens.float() / tokens, **kwargs)


def _one_or_many(functions: list[object]) -> object:
    # megatron-core's schedules expect a list if and only if the model has several chunks.
    return functions if len(functions) > 1 else functions[0]


def prepare_gradients(optimizer: ChainedOptimizer) -> bool:
    """Pass the gradients to the optimizer; with fp16, undo the loss scale, check for overflow and adapt the scale.

    Returns:
        Whether a gradient overflowed.
    """
    overflow = bool(optimizer.prepare_grads())
    if overflow:
        # Experts and the rest have separate scales, and only one that overflows is reduced; the loss has one scale.
        states = [part.grad_scaler.state_dict() for part in optimizer.chained_optimizers]
        seen = min(states, key=lambda state: (state["growth_tracker"], state["hysteresis_tracker"]))
        for part in optimizer.chained_optimizers:
            part.grad_scaler.load_state_dict(seen)
    return overflow


def set_learning_rate(optimizer: ChainedOptimizer, lr: float, weight_decay: float) -> None:
    """Set learning rate and weight decay of every group, using the multipliers of the group."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_mult"]
        group["weight_decay"] = weight_decay * group["wd_mult"]


def clip_gradients(optimizer: ChainedOptimizer, norm: float) -> None:
    """Scale all gradients so that their global norm, now ``norm``, is at most the configured one."""
    for part in optimizer.chained_optimizers:
        parameters = part.get_parameters()
        if parameters and part.config.clip_grad > 0:
            decoupled = part.config.use_precision_aware_optimizer_no_fp8_or_ds_fp8
            clip_grad_by_total_norm_fp32(parameters, part.config.clip_grad, norm, decoupled)
