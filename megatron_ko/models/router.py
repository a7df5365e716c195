"""The router of both back ends: megatron-core's, with exactly weighted auxiliary losses and with statistics."""

from collections.abc import Sequence
from typing import Any

import torch
from megatron.core.transformer.moe.moe_utils import MoEAuxLossAutoScaler, z_loss_func
from megatron.core.transformer.moe.router import TopKRouter
from torch import Tensor

from megatron_ko.models.router_stats import RouterTotals
from megatron_ko.parallel.compat import accept_empty_states, define_missing_names

define_missing_names()
accept_empty_states()


class Router(TopKRouter):
    """Top-k router.

    The trainer divides all gradients by the counted tokens of the global batch. An auxiliary loss should count as its
    mean over micro-batches, so its gradient is first multiplied by ``tokens_per_micro_batch``. megatron-core uses the
    routed tokens of this rank as that factor. This is wrong by the number of tensor and context ranks (0.16), if labels
    are masked, and for the loss over all data-parallel ranks.

    Attributes:
        tokens_per_micro_batch: counted tokens of the global batch divided by its micro-batches; set before each step.
        totals: routing statistics since they were last reset.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.tokens_per_micro_batch: Tensor | float = 1.0
        self.totals = RouterTotals(self.num_experts)

    def attach_and_log_load_balancing_loss(
        self,
        activation: Tensor,
        aux_loss_coeff: float,
        aux_loss: Tensor,
        aux_loss_name: str,
        reduce_group: torch.distributed.ProcessGroup,
        **_: object,
    ) -> Tensor:
        """Make the backward pass through ``activation`` also run the one through ``aux_loss``.

        Args:
            activation: anything that the loss of the model depends on.
            aux_loss_coeff: weight that ``aux_loss`` has been multiplied by.
            aux_loss: this rank's part of a sum over ``reduce_group``.
            aux_loss_name: its name in megatron-core.
            reduce_group: ranks whose tokens are balanced together.
        """
        # A loss shared by several replicas has to count once for each of them.
        replicas = reduce_group.size() / self.tp_cp_group.size()
        self.totals.add_aux_loss(aux_loss.detach() * (replicas / aux_loss_coeff))
        attached: Tensor = MoEAuxLossAutoScaler.apply(activation, aux_loss * (self.tokens_per_micro_batch * replicas))
        return attached

    def apply_z_loss(self, logits: Tensor, padding_mask: Tensor | None = None) -> Tensor:
        """Attach the router z-loss (Zoph et al., 2022, arXiv:2202.08906) to the logits [t, e]."""
        if self.config.moe_z_loss_coeff is None or not self.training or not torch.is_grad_enabled():
            return logits
        share = self._share_of_z_loss(logits, padding_mask)
        self.totals.add_z_loss(share.detach())
        weight = self.config.moe_z_loss_coeff * self.tokens_per_micro_batch
        attached: Tensor = MoEAuxLossAutoScaler.apply(logits, share * weight)
        return attached

    def _share_of_z_loss(self, logits: Tensor, padding_mask: Tensor | None) -> Tensor:
        """This rank's part of the mean over the tokens of all ranks that share the batch, without padding."""
        if padding_mask is None:
            share: Tensor = z_loss_func(logits, 1 / self.tp_cp_group.size())
            return share
        counted = (~padding_mask).sum().to(torch.float32)
        torch.distributed.all_reduce(counted, group=self.tp_cp_group)
        squares = torch.logsumexp(logits, dim=-1).square() * ~padding_mask
        return squares.sum() / counted.clamp(min=1)

    def routing(self, logits: Tensor, padding_mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Weights and choice of experts, both [t, e], from logits [s, b, e]."""
        weights, chosen = super().routing(logits, padding_mask=padding_mask)
        if self.training and torch.is_grad_enabled():  # recomputation counts once, validation not at all
            flat = logits.detach().view(-1, self.num_experts)
            there = None if padding_mask is None else ~padding_mask.reshape(-1)
            self.totals.add_routing(flat, chosen, self.score_function, there)
        return weights, chosen


def routers_of(chunks: Sequence[torch.nn.Module]) -> list[Router]:
    """The routers of model chunks, wrapped or not; none in a dense model."""
    return [module for chunk in chunks for module in chunk.modules() if isinstance(module, Router)]


def weigh_auxiliary_losses(routers: Sequence[Router], tokens_per_micro_batch: Tensor) -> None:
    """Set what the gradients of the next step will be divided by, per micro-batch; a scalar on the device."""
    for router in routers:
        router.tokens_per_micro_batch = tokens_per_micro_batch


def balancing_biases(routers: Sequence[Router]) -> list[Tensor]:
    """Copies of the biases that balance the experts without a loss; empty if that is not configured."""
    return [router.expert_bias.clone() for router in routers if router.expert_bias is not None]


def restore_biases(routers: Sequence[Router], biases: Sequence[Tensor]) -> None:
    """Undo an update of the biases, which megatron-core makes before it is known whether the step is skipped."""
    for router, bias in zip(routers, biases, strict=bool(biases)):
        router.expert_bias.copy_(bias)
