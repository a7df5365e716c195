"""Mixture of experts: what megatron-core is told."""

from typing import Any

from megatron_ko.config import RunConfig


def moe_settings(config: RunConfig) -> dict[str, Any]:
    """The fields of TransformerConfig that describe experts, router and dispatcher; none for a dense model."""
    assert config.model.moe is None, "experts"
    return {}
