"""Reports on routing: a few numbers per step, loads of all experts now and then, a warning if an expert starves."""

from collections import deque
from collections.abc import Sequence

import numpy as np

from megatron_ko.log import get_logger
from megatron_ko.models.routing import LayerRouting
from megatron_ko.train.state import StepResult, TrainState

_RECORDS = 200  # in a whole run, enough for the width of a plot
_WINDOW = 20  # number of steps over which the load is averaged
_NAMED = 5  # experts listed in a warning
_log = get_logger(__name__)


def record_interval(steps: int) -> int:
    """Steps between two records of all loads."""
    return max(1, steps // _RECORDS)


def routing_means(routing: Sequence[LayerRouting]) -> dict[str, float]:
    """Summary of the step: means over layers, and the most uneven load; empty for a dense model."""
    if not routing:
        return {}
    layers = len(routing)
    return {
        "expert_imbalance": sum(layer.imbalance for layer in routing) / layers,
        "expert_imbalance_worst": max(layer.imbalance for layer in routing),
        "expert_load_least": min(min(layer.loads) for layer in routing),
        "expert_dropped": sum(layer.dropped for layer in routing) / layers,
        "router_entropy": sum(layer.entropy for layer in routing) / layers,
        "router_aux_loss": sum(layer.aux_loss for layer in routing) / layers,
        "router_z_loss": sum(layer.z_loss for layer in routing) / layers,
    }


def routing_record(step: int, routing: Sequence[LayerRouting]) -> dict[str, object]:
    """One record for all layers: loads [layer][expert] as multiples of an even share, and one number per layer."""
    return {
        "step": step,
        "loads": [[round(load, 4) for load in layer.loads] for layer in routing],
        "dropped": [layer.dropped for layer in routing],
        "entropy": [layer.entropy for layer in routing],
        "aux_loss": [layer.aux_loss for layer in routing],
        "z_loss": [layer.z_loss for layer in routing],
    }


class StarvationWatch:
    """Warns once about each expert that has had too little load for a while.

    Args:
        least: share of even load below which an expert starves (``model.moe.starved_load``); 0: never.
    """

    def __init__(self, least: float) -> None:
        self._least = least
        self._loads: deque[np.ndarray] = deque(maxlen=_WINDOW)
        self._told: set[tuple[int, int]] = set()

    def see(self, state: TrainState, result: StepResult) -> None:
        """Check the step that has just finished; it is the same on every rank, so only the first one warns."""
        if not self._least or not result.routing:
            return
        self._loads.append(np.array([layer.loads for layer in result.routing]))
        if len(self._loads) < _WINDOW:
            return
        means = np.mean(self._loads, axis=0)
        starved = {(int(layer), int(expert)) for layer, expert in np.argwhere(means < self._least)}
        if new := sorted(starved - self._told):
            names = ", ".join(
                f"{expert} of layer {layer + 1} ({means[layer, expert]:.3f})" for layer, expert in new[:_NAMED]
            )
            _log.warning(
                "step %d: %d more experts starve, %d in all: less than %g of an even load over %d steps: expert %s%s. "
                "Raise model.moe.aux_loss_coeff, or balance with expert_bias",
                state.step, len(new), len(starved), self._least, _WINDOW, names, ", ..." * (len(new) > _NAMED),
            )  # fmt: skip
        self._told = starved
