"""Low-precision recipes: settings for megatron-core, and which recipes a device can run."""

import importlib.metadata
from dataclasses import dataclass
from typing import Any

from megatron_ko.config import PrecisionConfig
from megatron_ko.errors import ConfigError
from megatron_ko.models.blueprint import Blueprint
from megatron_ko.parallel.compat import INSTALL_ENGINE
from megatron_ko.parallel.platform import get_platform

Capability = tuple[int, int]


@dataclass(frozen=True)
class Need:
    """What a recipe requires.

    Attributes:
        engine_name: its name in megatron-core.
        lowest: lowest compute capability that supports it.
        below: compute capability from which Transformer Engine does not (yet) support it.
        transformer_engine: the first release that supports it.
    """

    engine_name: str
    lowest: Capability
    below: Capability
    transformer_engine: str


_ANY: Capability = (99, 0)
# The releases are from megatron_core.fp8_utils and fp4_utils, the GPUs from Transformer Engine's quantization.py.
NEEDS = {
    "fp8_delayed": Need("delayed", (8, 9), _ANY, "1.0"),
    "fp8_current": Need("tensorwise", (8, 9), _ANY, "2.2"),
    "fp8_blockwise": Need("blockwise", (9, 0), _ANY, "2.3"),
    "mxfp8": Need("mxfp8", (10, 0), (12, 0), "2.1"),
    "nvfp4": Need("nvfp4", (10, 0), _ANY, "2.7"),
}


def precision_settings(blueprint: Blueprint) -> dict[str, Any]:
    """The fields of TransformerConfig that set the number formats of matrix products.

    Raises:
        ConfigError: this machine cannot run the recipe.
    """
    refuse_impossible(blueprint.precision)
    return recipe_settings(blueprint)


def recipe_settings(blueprint: Blueprint) -> dict[str, Any]:
    """The same for any machine. By megatron-core's defaults, router and output layer never use the recipe."""
    precision = blueprint.precision
    if precision.recipe == "none" or precision.emulated:
        return {}
    name = NEEDS[precision.recipe].engine_name
    settings: dict[str, Any] = {"fp4": "e2m1", "fp4_recipe": name}
    if precision.recipe != "nvfp4":
        settings = {"fp8": precision.gradient_format, "fp8_recipe": name, "fp8_param": precision.fp8_weights}
    if precision.recipe == "fp8_delayed":
        # The largest magnitude of the last 1024 steps, as in Transformer Engine's own defaults.
        settings |= {"fp8_amax_history_len": 1024, "fp8_amax_compute_algo": "max"}
    if precision.first_layers_high or precision.last_layers_high:
        settings["first_last_layers_bf16"] = True
        settings["num_layers_at_start_in_bf16"] = precision.first_layers_high
        settings["num_layers_at_end_in_bf16"] = precision.last_layers_high
    return settings


def data_parallel_settings(precision: PrecisionConfig) -> dict[str, Any]:
    """The fields of DistributedDataParallelConfig for weights in 8 bits."""
    if not precision.fp8_weights:
        return {}
    return {"fp8_param_gather": True, "reuse_grad_buf_for_mxfp8_param_ag": precision.recipe == "mxfp8"}


def optimizer_settings(precision: PrecisionConfig) -> dict[str, Any]:
    """The fields of OptimizerConfig for weights in 8 bits."""
    if not precision.fp8_weights:
        return {}
    name = NEEDS[precision.recipe].engine_name
    return {"fp8_recipe": name, "reuse_grad_buf_for_mxfp8_param_ag": precision.recipe == "mxfp8"}


def refuse_impossible(precision: PrecisionConfig) -> None:
    """Refuse a recipe that this machine cannot run, before anything is built.

    Raises:
        ConfigError: with the reason and the recipes that the machine can run.
    """
    if precision.recipe == "none" or precision.emulated:
        return
    capability, engine = get_platform().compute_capability, transformer_engine_release()
    if reason := why_not(precision.recipe, capability, engine):
        possible = ["none", *(name for name in NEEDS if not why_not(name, capability, engine)), "mxfp8 emulated"]
        raise ConfigError(
            f"precision.recipe={precision.recipe} cannot run here: {reason}",
            got=get_platform().device_name,
            expected=f"a recipe that can run here: {', '.join(possible)}",
            remedy="precision.recipe=none, or precision.recipe=mxfp8 precision.mxfp8.emulate=true to see its losses",
        )


def why_not(recipe: str, capability: Capability | None, engine: str | None) -> str | None:
    """Why a machine cannot run a recipe; None if it can.

    Args:
        recipe: ``precision.recipe``, not "none".
        capability: compute capability of its GPU; None if it has none.
        engine: release of Transformer Engine; None if it is not installed.
    """
    need = NEEDS[recipe]
    if capability is None:
        return "there is no CUDA device"
    if not need.lowest <= capability < need.below:
        span = f"sm_{_digits(need.lowest)}" + (" or later" if need.below == _ANY else f" to sm_{need.below[0] - 1}x")
        return f"the device is sm_{_digits(capability)}, and the recipe needs {span}"
    if engine is None:
        return f"Transformer Engine is not installed: {INSTALL_ENGINE}"
    if _release(engine) < _release(need.transformer_engine):
        return f"Transformer Engine is {engine}, and the recipe needs {need.transformer_engine}"
    return None


def _release(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2])


def _digits(capability: Capability) -> str:
    return f"{capability[0]}{capability[1]}"


def transformer_engine_release() -> str | None:
    """Installed release of Transformer Engine, or None."""
    try:
        return importlib.metadata.version("transformer-engine")
    except importlib.metadata.PackageNotFoundError:
        return None
