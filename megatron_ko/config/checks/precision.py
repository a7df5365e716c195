"""Checks whether number formats fit the dimensions, the layers and each other."""

from collections.abc import Iterator

from megatron_ko.config.precision import PrecisionConfig
from megatron_ko.config.problems import Problem
from megatron_ko.config.run import RunConfig

# In the matrix products of a recipe, widths and tokens must be multiples of these.
_MULTIPLES = {
    "fp8_delayed": (16, 8),
    "fp8_current": (16, 8),
    "fp8_blockwise": (16, 8),
    "mxfp8": (32, 32),
    "nvfp4": (32, 32),
}


def check_precision(config: RunConfig) -> Iterator[Problem]:
    """Check whether number formats fit the dimensions, the layers and each other."""
    yield from _check_loss_scale(config.precision)
    if config.precision.recipe == "none":
        return
    yield from _check_backend(config)
    yield from _check_dtype(config)
    yield from _check_high_layers(config)
    yield from _check_weights(config)
    yield from _check_widths(config)
    yield from _check_tokens(config)


def _check_loss_scale(precision: PrecisionConfig) -> Iterator[Problem]:
    if precision.dtype == "fp16" and precision.min_loss_scale > precision.initial_loss_scale:
        yield Problem(
            path="precision.min_loss_scale",
            got=precision.min_loss_scale,
            expected=f"at most initial_loss_scale {precision.initial_loss_scale:g}",
            remedy=f"precision.min_loss_scale={precision.initial_loss_scale:g}",
        )


def _check_backend(config: RunConfig) -> Iterator[Problem]:
    precision = config.precision
    if precision.emulated and precision.backend == "transformer_engine":
        yield Problem(
            path="precision.mxfp8.emulate",
            got=True,
            expected="false with precision.backend transformer_engine: the portable layers emulate",
            remedy="precision.backend=auto",
        )
    if not precision.emulated and precision.backend == "portable":
        emulation = ", or precision.mxfp8.emulate=true" if precision.recipe == "mxfp8" else ""
        yield Problem(
            path="precision.recipe",
            got=precision.recipe,
            expected="none with precision.backend portable: Transformer Engine has the kernels",
            remedy=f"precision.backend=auto{emulation}",
        )


def _check_dtype(config: RunConfig) -> Iterator[Problem]:
    precision = config.precision
    possible = ("bf16", "fp32") if precision.emulated else ("bf16",)
    if precision.dtype not in possible:
        yield Problem(
            path="precision.dtype",
            got=precision.dtype,
            expected=f"{' or '.join(possible)} with precision.recipe {precision.recipe}",
            remedy="precision.dtype=bf16",
        )


def _check_high_layers(config: RunConfig) -> Iterator[Problem]:
    precision, layers = config.precision, config.model.num_layers
    first, last = precision.first_layers_high, precision.last_layers_high
    if first + last >= layers:
        yield Problem(
            path="precision.first_layers_high",
            got=f"{first} layers at the bottom and {last} at the top",
            expected=f"fewer than num_layers {layers} in total, so that the recipe has a layer",
            remedy="precision.recipe=none, or fewer layers",
        )
    if (first or last) and precision.recipe == "fp8_delayed":
        yield Problem(
            path="precision.recipe",
            got="fp8_delayed",
            expected="another recipe with first_layers_high or last_layers_high: delayed scaling covers all layers",
            remedy="precision.recipe=fp8_current",
        )
    stage = layers // config.parallel.pipeline
    for name, count in (("first_layers_high", first), ("last_layers_high", last)):
        if count > stage and not precision.emulated:
            yield Problem(
                path=f"precision.{name}",
                got=count,
                expected=f"at most {stage}, the layers of one of {config.parallel.pipeline} pipeline stages",
                remedy=f"precision.{name}={stage}",
            )


def _check_weights(config: RunConfig) -> Iterator[Problem]:
    precision, parallel = config.precision, config.parallel
    if not precision.fp8_weights:
        return
    if not parallel.distributed_optimizer:
        yield Problem(
            path="precision.fp8_weights",
            got=True,
            expected="parallel.distributed_optimizer: only it can write updates into 8-bit weights",
            remedy="parallel.distributed_optimizer=true",
        )
    if precision.recipe == "mxfp8" and parallel.overlap_param_gather:
        yield Problem(
            path="precision.fp8_weights",
            got=True,
            expected="parallel.overlap_param_gather to be off: mxfp8 weights are gathered in the gradients' memory, "
            "which the overlap would still use",
            remedy="parallel.overlap_param_gather=false, or precision.fp8_weights=false",
        )


def _check_widths(config: RunConfig) -> Iterator[Problem]:
    model, parallel, recipe = config.model, config.parallel, config.precision.recipe
    multiple, _ = _MULTIPLES[recipe]
    query, pair = model.num_attention_heads * model.kv_channels, 2 * model.query_groups * model.kv_channels
    ffn_ranks = parallel.expert_tensor_size if model.moe else parallel.tensor
    widths = [
        ("model.hidden_size", model.hidden_size, 1, "the residual stream"),
        ("model.num_attention_heads", query, parallel.tensor, "all query heads"),
        ("model.num_query_groups", query + pair, parallel.tensor, "queries, keys and values"),
        ("model.ffn_hidden_size", model.ffn_hidden_size, ffn_ranks, "the feed-forward layer"),
    ]
    if model.moe and model.moe.shared_ffn_hidden_size:
        widths.append(
            ("model.moe.shared_ffn_hidden_size", model.moe.shared_ffn_hidden_size, parallel.tensor, "the shared expert")
        )
    for path, width, ranks, what in widths:
        # Widths that the ranks do not divide are reported by another check.
        if width % ranks == 0 and width // ranks % multiple:
            share = f" = {width // ranks} on each of {ranks} ranks" if ranks > 1 else ""
            yield Problem(
                path=path,
                got=f"{what}: {width}{share}",
                expected=f"a multiple of {multiple}{' on each rank' if ranks > 1 else ''} with recipe {recipe}",
                remedy=_repair(width, ranks, multiple),
            )


def _repair(width: int, ranks: int, multiple: int) -> str:
    if width % multiple == 0:
        return f"split it over at most {width // multiple} ranks, or precision.recipe=none"
    step = ranks * multiple
    below = width // step * step
    fitting = " or ".join(str(w) for w in (below, below + step) if w)
    return f"a width of {fitting}, or precision.recipe=none"


def _check_tokens(config: RunConfig) -> Iterator[Problem]:
    parallel = config.parallel
    _, multiple = _MULTIPLES[config.precision.recipe]
    tokens = config.training.micro_batch_size * config.data.sequence_length
    ranks = parallel.context * (parallel.tensor if parallel.sequence_parallel else 1)
    if tokens % ranks == 0 and tokens // ranks % multiple:
        share = f" = {tokens // ranks} on each of {ranks} ranks" if ranks > 1 else ""
        yield Problem(
            path="data.sequence_length",
            got=f"micro-batches of {tokens} tokens{share}",
            expected=f"a multiple of {multiple}: gradients of weights sum over tokens in blocks",
            remedy=f"data.sequence_length or training.micro_batch_size a multiple of {multiple * ranks}",
        )
