"""Is it a network?"""

from collections.abc import Iterator

from megatron_ko.config.checks.divisors import divisors
from megatron_ko.config.problems import Problem
from megatron_ko.config.run import RunConfig


def check_model(config: RunConfig) -> Iterator[Problem]:
    """Dimensions that must divide each other, and what the family needs."""
    model = config.model
    if model.head_dim is None and model.hidden_size % model.num_attention_heads:
        yield Problem(
            path="model.num_attention_heads",
            got=model.num_attention_heads,
            expected=f"a divisor of hidden_size {model.hidden_size}",
            remedy="change it, or set model.head_dim",
        )
    if model.num_attention_heads % model.query_groups:
        yield Problem(
            path="model.num_query_groups",
            got=model.query_groups,
            expected=f"a divisor of num_attention_heads {model.num_attention_heads}",
            remedy=f"one of {divisors(model.num_attention_heads)}",
        )
    if model.kv_channels % 2:
        yield Problem(path="model.head_dim", got=model.kv_channels, expected="an even number, for rotary positions")
