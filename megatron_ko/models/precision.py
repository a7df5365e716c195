"""Low-precision recipes: what megatron-core is told, and what a device can run."""

from typing import Any

from megatron_ko.config import RunConfig


def precision_settings(config: RunConfig) -> dict[str, Any]:
    """The fields of TransformerConfig that choose the numbers of matrix products."""
    assert config.precision.recipe == "none", config.precision.recipe
    return {}
