"""A model on one rank, without training settings: for generation and for checking conversions."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from megatron.core.tensor_parallel import ColumnParallelLinear, RowParallelLinear
from torch import Tensor

from megatron_ko.config import AdapterConfig, ModelConfig, PrecisionConfig
from megatron_ko.models.adapter import attach_adapters, merge_adapters
from megatron_ko.models.architectures import DTYPES
from megatron_ko.models.blueprint import Blueprint
from megatron_ko.models.build import build_structure
from megatron_ko.models.inference_linear import linear
from megatron_ko.models.weights import load_weights, load_weights_alone
from megatron_ko.parallel.platform import get_platform
from megatron_ko.parallel.seed import seed_everything
from megatron_ko.parallel.single import single_world

_NAMES = {dtype: name for name, dtype in DTYPES.items()}


def blueprint_of(model: ModelConfig, dtype: torch.dtype = torch.float32) -> Blueprint:
    """The blueprint of a single network with portable layers."""
    precision = PrecisionConfig.model_validate({"dtype": _NAMES[dtype], "backend": "portable"})
    return Blueprint(model=model, precision=precision).for_inference


@dataclass(frozen=True)
class TrainedAdapters:
    """Adapters of a run.

    Attributes:
        adapter: their configuration.
        weights: folder of ``dist_checkpointing``.
        merge: whether they are put into the weights of their layers.
    """

    adapter: AdapterConfig
    weights: Path
    merge: bool = True


def load_for_inference(blueprint: Blueprint, weights: Path, adapters: TrainedAdapters | None = None) -> torch.nn.Module:
    """Build a model on this rank alone, in evaluation mode, with weights rounded to its data type.

    Weights are not initialised randomly: all of them are read.

    Args:
        blueprint: of the network.
        weights: folder of ``dist_checkpointing``.
        adapters: that were trained with these weights.

    Raises:
        CheckpointError: the folder does not hold the weights of this model.
    """
    groups = single_world()
    seed_everything(0, groups)  # megatron-core needs its generators even if nothing is drawn
    (chunk,) = build_structure(blueprint, groups)
    network = chunk.to(get_platform().device)
    load_weights_alone(network, weights)
    if adapters is not None:
        attach_adapters([network], adapters.adapter, groups, seed=0)
        load_weights([network], adapters.weights)
        if adapters.merge:
            merge_adapters([network])
    network = network.to(DTYPES[blueprint.precision.dtype]).eval()
    for module in network.modules():
        if isinstance(module, ColumnParallelLinear | RowParallelLinear):
            module.forward = partial(_linear, module)
    return network


def _linear(
    module: torch.nn.Module, given: Tensor, weight: Tensor | None = None, runtime_gather_output: bool | None = None
) -> tuple[Tensor, None]:
    """A linear layer of one rank, without what a backward pass and several ranks need, which cost one token much."""
    return linear(given, module.weight if weight is None else weight), None
