"""Routing statistics of a step as plain numbers. Needs no torch."""

from dataclasses import dataclass


@dataclass(frozen=True)
class LayerRouting:
    """Routing statistics of one layer in a step, over all ranks.

    Attributes:
        loads: tokens that each expert computed, as a multiple of an even share.
        dropped: share of the choices that were dropped because an expert was full.
        entropy: mean entropy of a token's scores over the experts, in nats; ln(experts) if all are equal.
        aux_loss, z_loss: mean over micro-batches, unweighted; 0 if not configured.
    """

    loads: tuple[float, ...]
    dropped: float
    entropy: float
    aux_loss: float
    z_loss: float

    @property
    def imbalance(self) -> float:
        """Load of the busiest expert as a multiple of an even share; 1 is perfect."""
        return max(self.loads)
