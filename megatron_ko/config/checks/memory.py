"""Recomputation and offloading: combinations that megatron-core supports."""

from collections.abc import Iterator

from megatron_ko.config.problems import Problem
from megatron_ko.config.run import RunConfig


def check_memory(config: RunConfig) -> Iterator[Problem]:
    """Check the options of recomputation and offloading."""
    yield from _check_recompute(config)
    yield from _check_offload(config)


def _check_recompute(config: RunConfig) -> Iterator[Problem]:
    training, moe = config.training, config.model.moe
    if training.recompute == "selective" and not training.recompute_modules:
        yield Problem(
            path="training.recompute_modules",
            got=training.recompute_modules,
            expected="at least one module with recompute selective",
            remedy="training.recompute_modules=[core_attn], or training.recompute=none",
        )
    only_experts = {"moe", "moe_act", "shared_experts"} & set(training.recompute_modules)
    if training.recompute == "selective" and moe is None and only_experts:
        yield Problem(
            path="training.recompute_modules",
            got=training.recompute_modules,
            expected="modules that a model without experts has: core_attn, layernorm, mlp",
            remedy=f"remove {', '.join(sorted(only_experts))}",
        )
    if training.recompute == "selective" and moe and "mlp" in training.recompute_modules:
        yield Problem(
            path="training.recompute_modules",
            got=training.recompute_modules,
            expected="moe instead of mlp: every feed-forward layer of this model is a mixture of experts",
            remedy="replace mlp by moe",
        )


def _check_offload(config: RunConfig) -> Iterator[Problem]:
    training = config.training
    if training.offload_layers == 0:
        return
    if training.offload_layers >= config.model.num_layers:
        yield Problem(
            path="training.offload_layers",
            got=training.offload_layers,
            expected=f"fewer than num_layers {config.model.num_layers}",
            remedy=f"training.offload_layers={config.model.num_layers - 1}",
        )
    if config.parallel.pipeline > 1:
        yield Problem(
            path="training.offload_layers",
            got=training.offload_layers,
            expected="0 with pipeline stages: megatron-core does not support offloading there",
            remedy="training.recompute=full, or parallel.pipeline=1",
        )
    if training.recompute != "none":
        yield Problem(
            path="training.offload_layers",
            got=training.offload_layers,
            expected="0 with recomputation, or recompute none: megatron-core supports only one of the two",
            remedy="training.offload_layers=0, or training.recompute=none",
        )
    if config.precision.layer_backend == "portable":
        yield Problem(
            path="training.offload_layers",
            got=training.offload_layers,
            expected="0 with portable layers: only Transformer Engine can offload",
            remedy="training.recompute=full, or precision.backend=auto without emulation",
        )
