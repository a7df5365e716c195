"""Checks of the network."""

from collections.abc import Iterator

from megatron_ko.config.checks.divisors import divisors
from megatron_ko.config.checks.moe import check_router
from megatron_ko.config.model import MOE_FAMILIES, UNIFORM_WINDOW_FAMILIES, WINDOW_FAMILIES, ModelConfig
from megatron_ko.config.problems import Problem
from megatron_ko.config.rope import DynamicScaling, Llama3Scaling, YarnScaling
from megatron_ko.config.run import RunConfig


def check_model(config: RunConfig) -> Iterator[Problem]:
    """The network of a run."""
    yield from check_network(config.model)


def check_network(model: ModelConfig) -> Iterator[Problem]:
    """Check that dimensions divide each other, and the requirements of the family."""
    yield from _check_heads(model)
    yield from _check_family(model)
    yield from check_router(model.moe) if model.moe else ()
    yield from _check_windows(model)
    yield from _check_rope(model)


def _check_heads(model: ModelConfig) -> Iterator[Problem]:
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
        yield Problem(
            path="model.head_dim",
            got=model.kv_channels,
            expected="an even number, for rotary positions",
            remedy=f"model.head_dim={model.kv_channels + 1}",
        )


def _check_family(model: ModelConfig) -> Iterator[Problem]:
    if model.family in MOE_FAMILIES and model.moe is None:
        yield Problem(
            path="model.moe",
            got=None,
            expected=f"experts, because family {model.family} has them in every layer",
            remedy="model.moe={num_experts: 8, top_k: 2}, or a family without experts: llama, qwen3",
        )
    if model.family not in MOE_FAMILIES and model.moe is not None:
        yield Problem(
            path="model.moe",
            got=f"{model.moe.num_experts} experts",
            expected=f"none: family {model.family} is dense",
            remedy=f"model.family={'qwen3_moe' if model.qk_norm else 'mixtral'}, or remove model.moe",
        )
    if model.family == "keural" and model.windows is None:
        yield Problem(
            path="model.windows",
            got=None,
            expected="a window for each layer; family keural is Mixtral with windows that differ between layers",
            remedy=f"model.windows=[512, null, ...] with {model.num_layers} entries, or model.family=mixtral",
        )
    if model.family not in WINDOW_FAMILIES and model.windows is not None:
        yield Problem(
            path="model.windows",
            got=list(model.windows),
            expected=f"none: family {model.family} has full attention",
            remedy=f"remove it, or choose another family: {', '.join(WINDOW_FAMILIES)}",
        )


def _check_windows(model: ModelConfig) -> Iterator[Problem]:
    windows = model.windows
    if windows is None or model.family not in WINDOW_FAMILIES:
        return
    if len(windows) != model.num_layers:
        yield Problem(
            path="model.windows",
            got=f"{len(windows)} entries",
            expected=f"{model.num_layers}, one for each layer (model.num_layers)",
            remedy=f"repeat the pattern: {_stretched(windows, model.num_layers)}",
        )
    if any(window is not None and window < 1 for window in windows):
        yield Problem(
            path="model.windows",
            got=list(windows),
            expected="number of earlier tokens that a token sees: at least 1, or null for all",
            remedy=f"model.windows={_in_words(tuple(w if w is None else max(w, 1) for w in windows))}",
        )
    if model.family in UNIFORM_WINDOW_FAMILIES and len(set(windows)) > 1:
        yield Problem(
            path="model.windows",
            got=list(windows),
            expected=f"the same window in every layer in family {model.family}",
            remedy="model.family=keural, which is the same network with a window for each layer",
        )


def _stretched(windows: tuple[int | None, ...], layers: int) -> str:
    return _in_words(tuple(windows[layer % len(windows)] for layer in range(layers)) if windows else (512,) * layers)


def _in_words(pattern: tuple[int | None, ...]) -> str:
    return "[" + ", ".join("null" if window is None else str(window) for window in pattern) + "]"


def _check_rope(model: ModelConfig) -> Iterator[Problem]:
    scaling, longest = model.rope.scaling, model.max_position_embeddings
    if scaling is None:
        return
    if scaling.type in ("ntk", "dynamic") and model.kv_channels < 4:
        yield Problem(
            path="model.head_dim",
            got=model.kv_channels,
            expected=f"4 or more for rope {scaling.type}",
            remedy="model.head_dim=64, or remove model.rope.scaling",
        )
    if isinstance(scaling, YarnScaling | DynamicScaling | Llama3Scaling):
        original = scaling.original_max_position_embeddings
        if original >= longest:
            yield Problem(
                path="model.rope.scaling.original_max_position_embeddings",
                got=original,
                expected=f"fewer than model.max_position_embeddings {longest}, the longest context wanted",
                remedy=f"model.max_position_embeddings={round(original * scaling.factor)}, or remove rope.scaling",
            )
    if isinstance(scaling, Llama3Scaling) and scaling.high_freq_factor <= scaling.low_freq_factor:
        yield Problem(
            path="model.rope.scaling.high_freq_factor",
            got=scaling.high_freq_factor,
            expected=f"more than low_freq_factor {scaling.low_freq_factor:g}",
            remedy="leave both out for the defaults, 1 and 4",
        )
    if isinstance(scaling, YarnScaling):
        yield from _check_yarn(scaling, longest)


def _check_yarn(scaling: YarnScaling, longest: int) -> Iterator[Problem]:
    at, original = "model.rope.scaling", scaling.original_max_position_embeddings
    if longest > round(original * scaling.factor):
        yield Problem(
            path=f"{at}.factor",
            got=scaling.factor,
            expected=f"at least max_position_embeddings {longest} / original_max_position_embeddings {original}",
            remedy=f"{at}.factor={longest / original:g}",
        )
    if scaling.beta_fast <= scaling.beta_slow:
        yield Problem(
            path=f"{at}.beta_fast",
            got=scaling.beta_fast,
            expected=f"more than beta_slow {scaling.beta_slow:g}",
            remedy="leave both out for the defaults, 32 and 1",
        )
    if (scaling.mscale is None) != (scaling.mscale_all_dim is None):
        yield Problem(
            path=f"{at}.mscale",
            got=f"mscale {scaling.mscale}, mscale_all_dim {scaling.mscale_all_dim}",
            expected="both or neither; with only one of them the factor is undefined",
            remedy="remove it, or set the other one as well",
        )
