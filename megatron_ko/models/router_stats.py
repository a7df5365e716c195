"""Routing statistics of a step: summed on the device while it runs, then exchanged once between all ranks."""

from collections.abc import Mapping

import torch
from torch import Tensor

from megatron_ko.config import MoeConfig
from megatron_ko.models.routing import LayerRouting
from megatron_ko.parallel.collectives import all_reduce_sum
from megatron_ko.parallel.platform import get_platform

# In a row of totals, these follow the loads of the experts.
_ENTROPY, _TOKENS, _AUX_LOSS, _Z_LOSS = -4, -3, -2, -1
_EXTRA = 4


class RouterTotals:
    """Sums of one router over the micro-batches of a step, on the device, without waiting for it.

    Args:
        num_experts: experts of the layer.
    """

    def __init__(self, num_experts: int) -> None:
        self._num_experts = num_experts
        self._sums: Tensor | None = None  # float64 [e + 4]; created on the device of the first logits

    def add_routing(self, logits: Tensor, chosen: Tensor, score_function: str, there: Tensor | None = None) -> None:
        """Count tokens and their experts.

        Args:
            logits: [t, e].
            chosen: bool [t, e], what remains after tokens were dropped.
            score_function: "softmax" or "sigmoid".
            there: bool [t], false for padding, which is not counted; None: all are.
        """
        sums = self._on(logits.device)
        if score_function == "sigmoid":
            scores = logits.float().sigmoid()
            shares = scores / scores.sum(dim=-1, keepdim=True)
            entropy = -(shares * shares.clamp_min(1e-20).log()).sum(dim=-1)
        else:
            log_shares = logits.float().log_softmax(dim=-1)
            entropy = -(log_shares.exp() * log_shares).sum(dim=-1)
        if there is not None:
            chosen, entropy = chosen & there[:, None], entropy * there
        sums[: self._num_experts] += chosen.sum(dim=0)
        sums[_ENTROPY] += entropy.sum()
        sums[_TOKENS] += len(logits) if there is None else there.sum()

    def add_aux_loss(self, value: Tensor) -> None:
        """Add this rank's part of the unweighted balancing loss of a micro-batch."""
        self._on(value.device)[_AUX_LOSS] += value

    def add_z_loss(self, value: Tensor) -> None:
        """Add this rank's part of the unweighted z-loss of a micro-batch."""
        self._on(value.device)[_Z_LOSS] += value

    def take(self, device: torch.device) -> Tensor:
        """The sums since the last call, float64 [e + 4]."""
        sums = self._on(device).clone()
        self._on(device).zero_()
        return sums

    def _on(self, device: torch.device) -> Tensor:
        if self._sums is None:
            self._sums = torch.zeros(self._num_experts + _EXTRA, dtype=torch.float64, device=device)
        return self._sums


def drain_routing_stats(
    totals: Mapping[int, RouterTotals], num_layers: int, moe: MoeConfig, micro_batches: int
) -> tuple[LayerRouting, ...]:
    """Statistics of all routers since the last call. A collective over all ranks, and the only wait for the device.

    Every pair of layer and token is counted by exactly one rank: tensor-parallel ranks hold different tokens, because
    experts under tensor parallelism need sequence parallelism.

    Args:
        totals: of this rank's layers, by number from 1.
        num_layers: layers of the model.
        moe: number of experts per layer and per token.
        micro_batches: number of micro-batches in the global batch.
    """
    device = get_platform().device
    sums = torch.zeros(num_layers, moe.num_experts + _EXTRA, dtype=torch.float64, device=device)
    for number, own in totals.items():
        sums[number - 1] = own.take(device)
    return tuple(_layer(row, moe, micro_batches) for row in all_reduce_sum(sums).tolist())


def _layer(row: list[float], moe: MoeConfig, micro_batches: int) -> LayerRouting:
    computed, tokens = row[: moe.num_experts], row[_TOKENS]
    even = tokens * moe.top_k / moe.num_experts
    return LayerRouting(
        loads=tuple(load / even for load in computed),
        dropped=1 - sum(computed) / (tokens * moe.top_k),
        entropy=row[_ENTROPY] / tokens,
        aux_loss=row[_AUX_LOSS] / micro_batches,
        z_loss=row[_Z_LOSS] / micro_batches,
    )
