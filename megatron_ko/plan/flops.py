"""The arithmetic of training one token, and the convention that it is counted in."""

from megatron_ko.config import ModelConfig
from megatron_ko.plan.params import check_heads

# Printed next to every figure, because published ones differ by more than ten per cent in how they count attention.
CONVENTION = "matrix products of forward and backward (3 x forward), causal attention counted half, recomputation not"


def matmul_parameters(model: ModelConfig) -> int:
    """Weights that a token is multiplied with: projections, feed-forward and the output layer.

    The embedding is a look-up and norms are not matrix products, so neither counts. The output layer counts even when
    it shares its weight with the embedding. Padding rows of the vocabulary do not count: they are not useful work.
    """
    check_heads(model)
    heads, groups, hidden = model.num_attention_heads, model.query_groups, model.hidden_size
    attention = hidden * model.kv_channels * (2 * heads + 2 * groups)
    mlp = 3 * hidden * model.ffn_hidden_size
    return model.num_layers * (attention + mlp) + model.vocab_size * hidden


def flops_per_token(model: ModelConfig, sequence_length: int) -> float:
    """FLOPs of training on one token: forward and backward, a multiplication and an addition counted as two.

    ``6 N + 6 L s n d`` with N the weights of ``matmul_parameters``, L layers, s tokens in a sequence, n query heads of
    width d. A forward pass is 2 N for the weights; scores and weighted values are 2 s n d each for full attention, and
    half of that is needed under a causal mask; the backward pass is twice the forward one. Recomputed activations are
    not counted, so the figure is that of model FLOPs utilisation (Chowdhery et al., 2022, arXiv:2204.02311, app. B,
    which counts full attention: 12 L s n d).

    Args:
        model: the network.
        sequence_length: tokens that attend to each other.
    """
    attention = model.num_layers * sequence_length * model.num_attention_heads * model.kv_channels
    return float(6 * matmul_parameters(model) + 6 * attention)
