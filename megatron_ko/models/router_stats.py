"""What routers did during a step: sums on the device while it runs, one exchange between all ranks at its end."""

import torch
from torch import Tensor

# Behind the loads of the experts, a row of totals ends with these.
_ENTROPY, _TOKENS, _AUX_LOSS, _Z_LOSS = -4, -3, -2, -1
_EXTRA = 4


class RouterTotals:
    """Sums of one router over the micro-batches of a step, on the device, without waiting for it.

    Args:
        num_experts: experts of the layer.
    """

    def __init__(self, num_experts: int) -> None:
        self._num_experts = num_experts
        self._sums: Tensor | None = None  # float64 [e + 4]; made where the first logits are

    def add_routing(self, logits: Tensor, chosen: Tensor, score_function: str) -> None:
        """Count tokens and their experts.

        Args:
            logits: [t, e].
            chosen: bool [t, e], what remains after tokens were dropped.
            score_function: "softmax" or "sigmoid".
        """
        sums = self._on(logits.device)
        if score_function == "sigmoid":
            scores = logits.float().sigmoid()
            shares = scores / scores.sum(dim=-1, keepdim=True)
            entropy = -(shares * shares.clamp_min(1e-20).log()).sum()
        else:
            log_shares = logits.float().log_softmax(dim=-1)
            entropy = -(log_shares.exp() * log_shares).sum()
        sums[: self._num_experts] += chosen.sum(dim=0)
        sums[_ENTROPY] += entropy
        sums[_TOKENS] += len(logits)

    def add_aux_loss(self, value: Tensor) -> None:
        """Add this rank's part of the balancing loss of a micro-batch, without its weight."""
        self._on(value.device)[_AUX_LOSS] += value

    def add_z_loss(self, value: Tensor) -> None:
        """Add this rank's part of the z-loss of a micro-batch, without its weight."""
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
