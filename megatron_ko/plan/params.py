"""Exact parameter counts from the configuration, by group, without building anything."""

from dataclasses import dataclass

from megatron_ko.config import ModelConfig
from megatron_ko.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class ParameterCount:
    """Parameters of a model with its vocabulary as published, that is without padding rows.

    Attributes:
        total: all parameters.
        active: parameters that take part in computing one token; all of them in a dense model.
        groups: embedding, attention, mlp, norms, output_layer (0 when tied); they add up to ``total``.
    """

    total: int
    active: int
    groups: dict[str, int]


def count_parameters(model: ModelConfig) -> ParameterCount:
    """Count the parameters of a dense Llama-family model.

    With width h, feed-forward width f, n query heads and g key/value heads of width d, L layers and v token ids:

    - embedding ``v h``; output_layer ``v h``, or 0 when tied
    - attention ``L (h n d + 2 h g d + n d h)``: query, key and value, output projection
    - mlp ``L 3 h f``: gate, up, down
    - norms ``(2 L + 1) h``: two a layer, and the last one

    Raises:
        ConfigError: the width of a head is not given and is not an integer.
    """
    check_heads(model)
    hidden, layers, head = model.hidden_size, model.num_layers, model.kv_channels
    heads, groups = model.num_attention_heads, model.query_groups
    embedding = model.vocab_size * hidden
    counts = {
        "embedding": embedding,
        "attention": layers * hidden * head * (2 * heads + 2 * groups),
        "mlp": layers * 3 * hidden * model.ffn_hidden_size,
        "norms": (2 * layers + 1) * hidden,
        "output_layer": 0 if model.tie_embeddings else embedding,
    }
    total = sum(counts.values())
    return ParameterCount(total=total, active=total, groups=counts)


def padding_parameters(model: ModelConfig, tensor: int = 1) -> int:
    """Parameters of the rows that pad the vocabulary for ``tensor`` tensor-parallel ranks.

    They are never trained on a token, are not part of the published model, and are not in ``count_parameters``.
    """
    rows = model.padded_vocab_size(tensor) - model.vocab_size
    return rows * model.hidden_size * (1 if model.tie_embeddings else 2)


def check_heads(model: ModelConfig) -> None:
    """Raise a ConfigError when the heads cannot be laid out."""
    if model.head_dim is None and model.hidden_size % model.num_attention_heads:
        raise ConfigError(
            "the width of a head is not an integer",
            got=f"hidden_size {model.hidden_size} / num_attention_heads {model.num_attention_heads}",
            expected="num_attention_heads that divides hidden_size, or head_dim given",
        )
    if model.num_attention_heads % model.query_groups:
        raise ConfigError(
            "query heads cannot be shared out evenly",
            got=f"num_attention_heads {model.num_attention_heads}, num_query_groups {model.query_groups}",
            expected="num_query_groups that divides num_attention_heads",
        )
