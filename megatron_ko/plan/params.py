"""Exact parameter counts from the configuration, by group, without building the model."""

from dataclasses import dataclass

from megatron_ko.config import AdapterConfig, ModelConfig, RunConfig


@dataclass(frozen=True, kw_only=True)
class ParameterCount:
    """Parameters of a model with its vocabulary as published, without padding rows.

    Attributes:
        groups: embedding, attention, mlp or experts, router and shared_experts, norms, output_layer (0 when tied).
        active_groups: the same, counting only parameters that are used to compute one token.
    """

    groups: dict[str, int]
    active_groups: dict[str, int]

    @property
    def total(self) -> int:
        """All parameters."""
        return sum(self.groups.values())

    @property
    def active(self) -> int:
        """Parameters that are used to compute one token; all of them in a dense model."""
        return sum(self.active_groups.values())


def count_parameters(model: ModelConfig) -> ParameterCount:
    """Count the parameters of a model.

    With width h, feed-forward width f, n query heads and g key/value heads of width d, L layers and v token ids:

    - embedding ``v h``; output_layer ``v h``, or 0 when tied
    - attention ``L (h n d + 2 h g d + n d h)``: query, key and value, output projection
    - mlp ``L 3 h f``: gate, up, down; or with E experts of which a token sees k, and a shared one of width s:
      experts ``L E 3 h f`` (active ``L k 3 h f``), router ``L E h``, shared_experts ``L 3 h s``
    - norms ``(2 L + 1) h``: two per layer and the last one; ``+ 2 L d`` if queries and keys are normalised per head
    """
    hidden, layers, head = model.hidden_size, model.num_layers, model.kv_channels
    embedding = model.vocab_size * hidden
    feed_forward, active_feed_forward = _feed_forward(model)
    before = {
        "embedding": embedding,
        "attention": layers * hidden * head * (2 * model.num_attention_heads + 2 * model.query_groups),
    }
    after = {
        "norms": (2 * layers + 1) * hidden + (2 * layers * head if model.qk_norm else 0),
        "output_layer": 0 if model.tie_embeddings else embedding,
    }
    return ParameterCount(groups=before | feed_forward | after, active_groups=before | active_feed_forward | after)


def _feed_forward(model: ModelConfig) -> tuple[dict[str, int], dict[str, int]]:
    """All parameters of the feed-forward layers by group, and those that are used to compute one token."""
    layers, hidden, moe = model.num_layers, model.hidden_size, model.moe
    one = layers * 3 * hidden * model.ffn_hidden_size
    if moe is None:
        return {"mlp": one}, {"mlp": one}
    dense = {"router": layers * moe.num_experts * hidden}
    if moe.shared_ffn_hidden_size:
        dense["shared_experts"] = layers * 3 * hidden * moe.shared_ffn_hidden_size
    return {"experts": moe.num_experts * one, **dense}, {"experts": moe.top_k * one, **dense}


def padding_parameters(model: ModelConfig, tensor: int = 1) -> int:
    """Parameters of the rows that pad the vocabulary for ``tensor`` tensor-parallel ranks.

    They are never trained, are not part of the published model, and are not in ``count_parameters``.
    """
    rows = model.padded_vocab_size(tensor) - model.vocab_size
    return rows * model.hidden_size * (1 if model.tie_embeddings else 2)


def trained_parameters(config: RunConfig) -> int:
    """Parameters that a run trains: all, or those of its adapters."""
    if config.adapter is None:
        return count_parameters(config.model).total
    return adapter_parameters(config.model, config.adapter)


def adapter_parameters(model: ModelConfig, adapter: AdapterConfig) -> int:
    """Parameters of the adapters: ``r (in + out)`` for a matrix, or for each expert's, and ``out`` with DoRA."""
    heads = model.num_attention_heads * model.kv_channels
    keys = model.query_groups * model.kv_channels
    sizes = {
        "qkv": (model.hidden_size, heads + 2 * keys),
        "proj": (heads, model.hidden_size),
        "fc1": (model.hidden_size, 2 * model.ffn_hidden_size),
        "fc2": (model.ffn_hidden_size, model.hidden_size),
    }
    lengths = 1 if adapter.kind == "dora" else 0
    experts = model.moe.num_experts if model.moe else 1
    copies = {"fc1": experts, "fc2": experts}
    one = sum(
        copies.get(target, 1) * (adapter.rank * sum(sizes[target]) + lengths * sizes[target][1])
        for target in adapter.targets
    )
    return model.num_layers * one
