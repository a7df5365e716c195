"""Low-rank adapters of experts: each expert of a rank has its own (LoRA: Hu et al., 2021, arXiv:2106.09685).

Experts are spread over ranks whole (``parallel.expert_tensor`` is 1), and so are their adapters: nothing is exchanged.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.dist_checkpointing.mapping import ShardedTensor
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.tensor_parallel import get_cuda_rng_tracker
from torch import Tensor

from megatron_ko.config import AdapterConfig
from megatron_ko.models.adapter_weights import EXPERT_PLACES, LAYERS, MARK, merged_weight
from megatron_ko.models.experts import GroupedExperts, expert_linear
from megatron_ko.models.initialise import row_blocks


@dataclass(frozen=True)
class ExpertPlace:
    """Where adapters of experts are.

    Attributes:
        target: fc1 or fc2.
        layer, layers: number of the transformer layer, from 0, and how many there are.
        groups: process groups; ``ep`` and ``expt_dp`` are read.
    """

    target: str
    layer: int
    layers: int
    groups: ProcessGroupCollection

    @property
    def prefix(self) -> str:
        """Of the names of its tensors in checkpoints."""
        return f"{LAYERS}{EXPERT_PLACES[self.target]}{MARK}"


class ExpertLowRank(torch.nn.Module):
    """The adapters of one matrix of all experts of this rank.

    Attributes:
        a: [e, r, in].
        b: [e, out, r], 0 at first.
    """

    def __init__(self, place: ExpertPlace, adapter: AdapterConfig, experts: torch.nn.Module, seed: int) -> None:
        super().__init__()
        self.place, self.scale, self._dropout = place, adapter.scale, adapter.dropout
        self._experts = [experts]  # in a list: their parameters are not ours
        weights = self._weights()
        (rows, columns), like = weights[0].shape, {"dtype": weights[0].dtype, "device": weights[0].device}
        self.a = torch.nn.Parameter(torch.empty(len(weights), adapter.rank, columns, **like))
        self.b = torch.nn.Parameter(torch.zeros(len(weights), rows, adapter.rank, **like))
        self._draw_a(seed)
        for parameter in (self.a, self.b):  # as the experts themselves: ``train.optimizer``
            parameter.allreduce = False
            parameter.tensor_model_parallel = True

    def _weights(self) -> list[Tensor]:
        """[out, in] of each expert; views of the parameters."""
        (experts,) = self._experts
        if isinstance(experts, GroupedExperts):
            return list((experts.weight1 if self.place.target == "fc1" else experts.weight2).detach())
        linear = experts.get_submodule(f"linear_{self.place.target}")
        return [getattr(linear, f"weight{number}").detach() for number in range(experts.num_local_experts)]

    def _draw_a(self, seed: int) -> None:
        place, (experts, rank, columns) = self.place, self.a.shape
        with torch.no_grad():
            for own in range(experts):
                number = place.groups.ep.rank() * experts + own
                name = f"{seed}/{place.prefix}a/({place.layer}, {number})"
                for row, block in row_blocks(name, range(rank), columns, torch.rand):
                    self.a[own, row : row + len(block)] = (2 * block - 1) / math.sqrt(columns)

    def join(self) -> None:
        """Change what the experts compute from now on."""
        (experts,) = self._experts
        if isinstance(experts, GroupedExperts):
            experts.adapters[self.place.target] = self
            return
        linear = experts.get_submodule(f"linear_{self.place.target}")
        self._hook = linear.register_forward_hook(self._adapt)

    def _adapt(
        self, linear: torch.nn.Module, given: tuple[Tensor, list[int]], output: tuple[Tensor, Tensor | None]
    ) -> tuple[Tensor, Tensor | None]:
        (tokens, counts), (value, bias) = given, output
        return self(tokens, value, torch.as_tensor(counts)), bias

    def merge(self) -> None:
        """Put the adapters into the weights of the experts, which from now on compute the same without them."""
        (experts,) = self._experts
        with torch.no_grad():
            for weight, a, b in zip(self._weights(), self.a, self.b, strict=True):
                weight.copy_(merged_weight(weight, a, b, self.scale))
        if isinstance(experts, GroupedExperts):
            del experts.adapters[self.place.target]
        else:
            self._hook.remove()

    def forward(self, tokens: Tensor, output: Tensor, counts: Tensor) -> Tensor:
        """What the experts compute with their adapters.

        Args:
            tokens: [t, in], sorted by expert.
            output: [t, out], what the experts compute of them.
            counts: [e], tokens of each expert.
        """
        if self._dropout and self.training:
            with get_cuda_rng_tracker().fork():
                tokens = F.dropout(tokens, self._dropout)
        low = expert_linear(tokens, self.a, counts)
        return output + expert_linear(low, self.b, counts) * self.scale

    def sharded_state_dict(self, prefix: str, sharded_offsets: tuple[Any, ...], metadata: dict[str, Any]) -> Any:
        """Its tensors as parts of global ones, which stack all layers and experts."""
        place, groups = self.place, self.place.groups
        return {
            f"{prefix}{name}": ShardedTensor.from_rank_offsets(
                f"{place.prefix}{name}",
                parameter,
                (0, place.layer, place.layers),
                (1, groups.ep.rank(), groups.ep.size()),
                replica_id=(0, 0, groups.expt_dp.rank()),
                prepend_axis_num=1,
            )
            for name, parameter in self.named_parameters()
        }
