"""Sets a window for each layer, in the same way for both back ends.

megatron-core's own pattern (``window_attn_skip_freq``) supports one width, and its layer numbers differ between
releases. Here each layer's attention is built from its own copy of the model's settings, which holds its window.
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
        windows: for each layer of the whole model, earlier tokens that a token sees besides itself; None: all.
    """
    if windows is not None:
        for attention in attentions_of(spec):
            attention.core_attention = _with_window(attention.core_attention, windows)


def attentions_of(spec: TransformerBlockSubmodules) -> list[SelfAttentionSubmodules]:
    """The distinct attention specifications of the layers; layers share them, so each is listed once."""
    parts = [layer.submodules.self_attention.submodules for layer in spec.layer_specs]
    return list({id(part): part for part in parts}.values())


def _with_window(core_attention: Callable[..., Any], windows: Sequence[int | None]) -> Callable[..., Any]:
    def build(*, config: TransformerConfig, layer_number: int, **others: Any) -> Any:
        window = windows[layer_number - 1]  # counted from 1 over the whole model, whatever the pipeline stage
        own = copy.copy(config)
        own.window_size = None if window is None else (window, 0)
        return core_attention(config=own, layer_number=layer_number, **others)

    return build
