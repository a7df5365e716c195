"""A window for each layer, the same way in both back ends.

megatron-core's own pattern (``window_attn_skip_freq``) knows one width, and numbers layers differently from release to
release. Here each layer's attention is built from a copy of the model's settings that says what its window is.
"""

import copy
from collections.abc import Callable, Sequence
from typing import Any

from megatron.core.transformer import TransformerConfig
from megatron.core.transformer.attention import SelfAttentionSubmodules
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules


def set_windows(spec: TransformerBlockSubmodules, windows: Sequence[int | None] | None) -> None:
    """Give the attention of every layer its window.

    Args:
        spec: layers of a model chunk, of either back end; changed in place.
        windows: for each layer of the whole model, earlier tokens that a token sees beside itself; None: all of them.
    """
    if windows is not None:
        for attention in attentions_of(spec):
            attention.core_attention = _with_window(attention.core_attention, windows)


def attentions_of(spec: TransformerBlockSubmodules) -> list[SelfAttentionSubmodules]:
    """What the attention of the layers is made of; layers share their specification, so each is there once."""
    parts = [layer.submodules.self_attention.submodules for layer in spec.layer_specs]
    return list({id(part): part for part in parts}.values())


def _with_window(core_attention: Callable[..., Any], windows: Sequence[int | None]) -> Callable[..., Any]:
    def build(*, config: TransformerConfig, layer_number: int, **others: Any) -> Any:
        window = windows[layer_number - 1]  # counted from 1 over the whole model, whatever the pipeline stage
        own = copy.copy(config)
        own.window_size = None if window is None else (window, 0)
        return core_attention(config=own, layer_number=layer_number, **others)

    return build
