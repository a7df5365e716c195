"""Selects the layers of a model chunk that emulate MXFP8."""

import dataclasses
from collections.abc import Mapping
from functools import partial
from typing import Any

from megatron.core.tensor_parallel import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer import TransformerConfig
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules
from megatron.core.transformer.transformer_layer import get_transformer_layer_offset

from megatron_ko.config import PrecisionConfig
from megatron_ko.models.experts import GroupedExperts
from megatron_ko.models.mxfp8.experts import mxfp8_experts
from megatron_ko.models.mxfp8.linear import Mxfp8Recipe, mxfp8_linears
from megatron_ko.models.mxfp8.numbers import E4M3, E5M2

_GRADIENTS = {"e4m3": E4M3, "hybrid": E5M2}


def emulate_mxfp8(
    spec: TransformerBlockSubmodules, precision: PrecisionConfig, config: TransformerConfig, vp_stage: int | None
) -> None:
    """Make the portable layers of a chunk emulate MXFP8 if ``precision`` requests it, except the high layers.

    Router, norms, attention itself and the output layer are not replaced either.

    Args:
        spec: layers of a model chunk; changed in place.
        precision: ``precision`` of the run.
        config: the model.
        vp_stage: index of the chunk on this pipeline stage; None without interleaving.
    """
    if not precision.emulated:
        return
    recipe = Mxfp8Recipe(_GRADIENTS[precision.gradient_format], precision.mxfp8.scale_rounding)
    linears = mxfp8_linears(recipe)
    classes: dict[type, type] = {
        ColumnParallelLinear: linears.column,
        RowParallelLinear: linears.row,
        GroupedExperts: mxfp8_experts(recipe),
    }
    first = get_transformer_layer_offset(config, vp_stage)
    spec.layer_specs = [
        layer if precision.is_high(number, config.num_layers) else _replace(layer, classes)
        for number, layer in enumerate(spec.layer_specs, start=first)
    ]


def _replace(part: Any, classes: Mapping[type, type]) -> Any:
    """A copy of a specification with replaced classes; handles all three forms that megatron-core uses."""
    if isinstance(part, type):
        return classes.get(part, part)
    if isinstance(part, partial):
        return partial(
            part.func, *part.args, **{name: _replace(value, classes) for name, value in part.keywords.items()}
        )
    if isinstance(part, ModuleSpec):
        return dataclasses.replace(part, submodules=_replace(part.submodules, classes))
    if dataclasses.is_dataclass(part):
        fields = {field.name: getattr(part, field.name) for field in dataclasses.fields(part)}
        return dataclasses.replace(part, **{name: _replace(value, classes) for name, value in fields.items()})  # type: ignore[type-var]
    return part
