"""Memory against time: what is recomputed, moved away or overlapped."""

from typing import Any

from megatron_ko.config import RunConfig


def memory_settings(config: RunConfig) -> dict[str, Any]:
    """The fields of TransformerConfig that trade time for memory."""
    return _recompute(config.training.recompute)


def _recompute(recompute: str) -> dict[str, Any]:
    if recompute == "full":
        return {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1}
    if recompute == "selective":
        return {"recompute_granularity": "selective", "recompute_modules": ["core_attn"]}
    return {}
