"""The FLOPs of training on one token, and the convention for counting them."""

from megatron_ko.config import ModelConfig
from megatron_ko.plan.params import count_parameters

# Printed next to every figure, because published figures differ by more than ten per cent in how they count attention.
CONVENTION = "matrix products of forward and backward (3 x forward), causal attention counted half, recomputation not"


def matmul_parameters(model: ModelConfig) -> int:
    """Weights that a token is multiplied with: projections, feed-forward or its experts, router, output layer.

    The embedding is a look-up and norms are not matrix products, so neither counts. The output layer counts even if it
    shares its weight with the embedding. Padding rows of the vocabulary do not count, because they do no useful work.
    """
    active = count_parameters(model).active_groups
    layers = sum(number for group, number in active.items() if group not in ("embedding", "norms", "output_layer"))
    return layers + model.vocab_size * model.hidden_size


def flops_per_token(model: ModelConfig, sequence_length: int) -> float:
    """FLOPs of training on one token: forward and backward; a multiplication and an addition count as two.

    ``6 N + 12 n d (sum of keys over layers)`` with N the weights of ``matmul_parameters`` and n query heads of width d.
    A forward pass is 2 N for the weights, and 2 n d per key for each of scores and weighted values; the backward pass
    is twice the forward pass. Recomputed activations are not counted, as in model FLOPs utilisation (Chowdhery et al.,
    2022, arXiv:2204.02311, app. B, which counts every key of the sequence: 12 L s n d).

    Args:
        model: the network.
        sequence_length: tokens that attend to each other.
    """
    keys = sum(visible_keys(sequence_length, model.window_of(layer)) for layer in range(model.num_layers))
    return float(6 * matmul_parameters(model) + 12 * model.num_attention_heads * model.kv_channels * keys)


def visible_keys(sequence_length: int, window: int | None) -> float:
    """Keys that a token sees on average over a sequence: half of the sequence, or less with a window.

    With a window of w tokens (including the token itself), the first w tokens see half of w on average, all others w.
    """
    seen = sequence_length if window is None else min(window + 1, sequence_length)
    return seen - seen * seen / (2 * sequence_length)
