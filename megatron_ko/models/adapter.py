"""Low-rank adapters: what a linear layer computes changes by s B A x, and its own weight stays as it is.

LoRA: Hu et al., 2021, arXiv:2106.09685. DoRA, which also trains the length of each row of the adapted weight: Liu et
al., 2024, arXiv:2402.09353.

Over tensor-parallel ranks B of a layer that is split by rows of its weight (qkv, fc1) is split as the weight is, and A
is whole on every rank; of a layer that is split by columns (proj, fc2), A is split and B is whole. Under sequence
parallelism the whole one sees this rank's tokens only, and its gradient is summed over the ranks.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from megatron.core.tensor_parallel import (
    copy_to_tensor_model_parallel_region,
    gather_from_sequence_parallel_region,
    get_cuda_rng_tracker,
    reduce_from_tensor_model_parallel_region,
    reduce_scatter_to_sequence_parallel_region,
    set_tensor_model_parallel_attributes,
)
from megatron.core.transformer.mlp import apply_swiglu_sharded_factory
from megatron.core.transformer.module import Float16Module
from megatron.core.transformer.utils import make_sharded_tensors_for_checkpoint
from torch import Tensor

from megatron_ko.config import AdapterConfig
from megatron_ko.errors import ConfigError
from megatron_ko.models.adapter_weights import EXPERT_PLACES, LAYERS, MARK, PLACES, merged_weight, plus_product
from megatron_ko.models.expert_adapter import ExpertLowRank, ExpertPlace
from megatron_ko.models.initialise import row_blocks
from megatron_ko.parallel.groups import Groups

# Transformer Engine's linear layers that begin with a norm have this attribute. If it is true they return the
# normalised input, too: what adapters of the layer are given.
_NORMALISES = "return_layernorm_output"


@dataclass(frozen=True)
class Place:
    """Where an adapter is.

    Attributes:
        name: of the linear layer in its transformer layer.
        layer, layers: number of the transformer layer, from 0, and how many there are.
        by_rows: whether the weight is split over tensor-parallel ranks by rows.
        group: these ranks.
        sequence_parallel: whether they split the sequence between linear layers.
    """

    name: str
    layer: int
    layers: int
    by_rows: bool
    group: dist.ProcessGroup
    sequence_parallel: bool

    @property
    def prefix(self) -> str:
        """Of the names of its tensors in checkpoints."""
        return f"{LAYERS}{self.name}{MARK}"


class LowRank(torch.nn.Module):
    """The adapter of one linear layer.

    B is 0 at first, and the model is the one that the run starts with, to the bit.

    Attributes:
        a: [r, in] or this rank's columns.
        b: [out, r] or this rank's rows.
        magnitude_change: [out] or this rank's; by how much a row is to be longer than that of the weight at the start.
            A difference, because bf16 is fine near 0 only.
    """

    def __init__(self, place: Place, adapter: AdapterConfig, weight: Tensor, seed: int) -> None:
        super().__init__()
        self.place, self.scale, self._dropout = place, adapter.scale, adapter.dropout
        like = {"dtype": weight.dtype, "device": weight.device}
        rows, columns = weight.shape
        self.a = torch.nn.Parameter(torch.empty(adapter.rank, columns, **like))
        self.b = torch.nn.Parameter(torch.zeros(rows, adapter.rank, **like))
        self.magnitude_change = torch.nn.Parameter(torch.zeros(rows, **like)) if adapter.kind == "dora" else None
        self._draw_a(seed)
        self._tell_how_they_are_split()
        if self.magnitude_change is not None:
            self.register_buffer("_norms_at_start", self._norms(weight), persistent=False)

    def _draw_a(self, seed: int) -> None:
        """Uniform within 1 / sqrt(in), as in PyTorch and peft; of the whole matrix each rank keeps its columns."""
        place, (rank, columns) = self.place, self.a.shape
        group = None if place.by_rows else place.group
        width, first = (columns, 0) if group is None else (columns * group.size(), columns * group.rank())
        name = f"{seed}/{place.prefix}a/({place.layer},)"
        with torch.no_grad():
            for row, block in row_blocks(name, range(rank), width, torch.rand):
                part = block[:, first : first + columns]
                self.a[row : row + len(block)] = (2 * part - 1) / math.sqrt(width)

    def _tell_how_they_are_split(self) -> None:
        """What megatron-core sums over tensor-parallel ranks, and counts once in the gradient norm."""
        for name, parameter in self.named_parameters(recurse=False):
            if (axis := self._split_axes.get(name)) is not None:
                set_tensor_model_parallel_attributes(parameter, True, axis, 1)
            else:
                parameter.sequence_parallel = self.place.sequence_parallel

    @property
    def _split_axes(self) -> dict[str, int]:
        return {"b": 0, "magnitude_change": 0} if self.place.by_rows else {"a": 1}

    def join(self, linear: torch.nn.Module) -> None:
        """Change what a layer computes from now on."""
        if _NORMALISES in vars(linear):
            setattr(linear, _NORMALISES, True)
        self._joined = (linear, linear.register_forward_hook(self._adapt))

    def _adapt(
        self, linear: torch.nn.Module, given: tuple[Tensor, ...], output: tuple[Any, Tensor | None]
    ) -> tuple[Tensor, Tensor | None]:
        found, bias = output
        value, normalised = found if isinstance(found, tuple) else (found, given[0])
        return self(normalised, value, linear.weight), bias

    def merge(self) -> None:
        """Put the adapter into the weight of the layer, which from now on computes the same without it."""
        linear, hook = self._joined
        hook.remove()
        if _NORMALISES in vars(linear):
            setattr(linear, _NORMALISES, False)
        with torch.no_grad():
            linear.weight.copy_(merged_weight(linear.weight, self.a, self.b, self.scale, self.magnitude_change))

    def forward(self, given: Tensor, output: Tensor, weight: Tensor) -> Tensor:
        """What the layer computes with its adapter.

        Args:
            given: [s, b, in], the layer's input; this rank's part of s or of in.
            output: what the layer computes of it, [s, b, out], whole or this rank's part of s or of out.
            weight: the layer's own.
        """
        low = self._between(F.linear(self._drop(given), self.a))
        output = output + F.linear(low, self.b) * self.scale
        if self.magnitude_change is None:
            return output
        lengthening = (self._norms_at_start + self.magnitude_change.float()) / self._norms(weight)
        return (lengthening * output).to(output.dtype)

    def _drop(self, given: Tensor) -> Tensor:
        if not self._dropout or not self.training:
            return given
        split = self.place.sequence_parallel or not self.place.by_rows
        with get_cuda_rng_tracker().fork() if split else nullcontext():
            return F.dropout(given, self._dropout)

    def _between(self, low: Tensor) -> Tensor:
        """[s, b, r] between A and B: from where A's ranks leave it to where B's ranks need it."""
        place = self.place
        if place.by_rows and place.sequence_parallel:
            return gather_from_sequence_parallel_region(low, tensor_parallel_output_grad=True, group=place.group)
        if place.by_rows:
            return copy_to_tensor_model_parallel_region(low, group=place.group)
        if place.sequence_parallel:
            return reduce_scatter_to_sequence_parallel_region(low, group=place.group)
        return reduce_from_tensor_model_parallel_region(low, group=place.group)

    @torch.no_grad()
    def _norms(self, weight: Tensor) -> Tensor:
        """[out], the length of each row of W + s B A in fp32. It has no gradient, as in the paper (section 4.3)."""
        squares = plus_product(weight, self.a, self.b, self.scale).square().sum(1)
        if not self.place.by_rows and self.place.group.size() > 1:
            dist.all_reduce(squares, group=self.place.group)
        return squares.sqrt()

    def sharded_state_dict(self, prefix: str, sharded_offsets: tuple[Any, ...], metadata: dict[str, Any]) -> Any:
        """Its tensors as parts of global ones, which stack all layers."""
        place, layer = self.place, ((0, self.place.layer, self.place.layers),)
        parts = make_sharded_tensors_for_checkpoint(
            self.state_dict(keep_vars=True),
            place.prefix,
            self._split_axes,
            layer,
            tp_group=place.group,
            dp_cp_group=metadata["dp_cp_group"],
        )
        if place.name == PLACES["fc1"][0]:  # each rank has rows of the gate and of up
            for name in (f"{place.prefix}{name}" for name in self._split_axes):
                if name in parts:
                    parts[name] = apply_swiglu_sharded_factory(parts[name], layer)
        return {prefix + name.removeprefix(place.prefix): part for name, part in parts.items()}


class Adapters(torch.nn.ModuleDict):
    """The adapters of a model chunk."""

    def sharded_state_dict(self, prefix: str, sharded_offsets: tuple[Any, ...], metadata: dict[str, Any]) -> Any:
        """See ``LowRank``."""
        parts = {}
        for name, adapter in self.items():
            parts.update(adapter.sharded_state_dict(f"{prefix}{name}.", sharded_offsets, metadata))
        return parts


def attach_adapters(chunks: Sequence[torch.nn.Module], adapter: AdapterConfig, groups: Groups, seed: int) -> None:
    """Give the targets in model chunks their adapters, and freeze everything else.

    Args:
        chunks: as returned by ``build_model``, with the weights that they start with, and not wrapped yet.
        adapter: the section of the configuration.
        groups: process groups.
        seed: decides A.

    Raises:
        ConfigError: a stage of the pipeline has no layer.
    """
    for chunk in chunks:
        network = chunk.module if isinstance(chunk, Float16Module) else chunk
        network.requires_grad_(False)
        network.config.moe_router_bias_update_rate = 0.0  # of the state of routers, which is no parameter
        network.adapters = Adapters(_make(network, adapter, groups, seed))
        if not network.adapters:
            raise ConfigError(
                "a stage of the pipeline has no layer, and nothing to train with adapters",
                remedy="fewer stages, or leave out parallel.embedding_as_layer and parallel.loss_as_layer",
            )
        if network.config.recompute_granularity is not None and network.pre_process:
            # Where a forward pass is repeated, there are gradients only if its input has one.
            network.embedding.register_forward_hook(lambda module, given, output: output.requires_grad_())


def _make(
    network: torch.nn.Module, adapter: AdapterConfig, groups: Groups, seed: int
) -> Iterator[tuple[str, LowRank | ExpertLowRank]]:
    config = network.config
    for layer in network.decoder.layers:
        for target in adapter.targets:
            number = layer.layer_number - 1
            if target in EXPERT_PLACES and config.num_moe_experts:
                place_of_experts = ExpertPlace(target, number, config.num_layers, groups.pg)
                experts = ExpertLowRank(place_of_experts, adapter, layer.mlp.experts, seed)
                experts.join()
                yield f"{number}-{target}", experts
                continue
            name, by_rows = PLACES[target]
            linear = layer.get_submodule(name)
            sequence = config.sequence_parallel and groups.tp_size > 1
            place = Place(name, number, config.num_layers, by_rows, groups.pg.tp, sequence)
            low = LowRank(place, adapter, linear.weight, seed)
            low.join(linear)
            yield f"{number}-{target}", low


def merge_adapters(chunks: Sequence[torch.nn.Module]) -> None:
    """Put every adapter of model chunks into the weight of its layer, and remove it."""
    for chunk in chunks:
        network = chunk.module if isinstance(chunk, Float16Module) else chunk
        for low in network.adapters.values():
            low.merge()
        del network.adapters
