"""Options that trade time for memory: recomputation, and offloading to host memory."""

from typing import Any

from megatron_ko.config import TrainingConfig
from megatron_ko.errors import ConfigError
from megatron_ko.models.blueprint import Blueprint
from megatron_ko.models.specs import uses_transformer_engine


def memory_settings(blueprint: Blueprint) -> dict[str, Any]:
    """The fields of TransformerConfig that trade time for memory.

    Raises:
        ConfigError: activation offloading is set, which only Transformer Engine supports.
    """
    if blueprint.training is None:
        return {}
    layers = blueprint.training.offload_layers
    return {**_recompute(blueprint.training), **_offload(layers, blueprint.precision.layer_backend)}


def _recompute(training: TrainingConfig) -> dict[str, Any]:
    if training.recompute == "selective":
        return {"recompute_granularity": "selective", "recompute_modules": list(training.recompute_modules)}
    if training.recompute == "none":
        return {}
    if training.recompute_layers is None:  # each layer separately
        return {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1}
    return {
        "recompute_granularity": "full",
        "recompute_method": "block",
        "recompute_num_layers": training.recompute_layers,
    }


def _offload(layers: int, backend: str) -> dict[str, Any]:
    if layers == 0:
        return {}
    if not uses_transformer_engine(backend):
        raise ConfigError(
            "portable layers cannot offload activations",
            got=f"training.offload_layers {layers}",
            expected="0, or a CUDA device with Transformer Engine",
            remedy="training.recompute=full saves as much",
        )
    return {"cpu_offloading": True, "cpu_offloading_num_layers": layers, "cpu_offloading_activations": True}
