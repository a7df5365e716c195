"""Windows, documents, and sequences that are split over ranks."""

from collections.abc import Iterator

from megatron_ko.config.problems import Problem
from megatron_ko.config.rope import DynamicScaling
from megatron_ko.config.run import RunConfig


def check_attention(config: RunConfig) -> Iterator[Problem]:
    """Windows, documents, and sequences that are split over ranks."""
    yield from _check_context(config)
    yield from _check_exchange(config)
    yield from _check_dropout(config)
    yield from _check_documents(config)


def _check_context(config: RunConfig) -> Iterator[Problem]:
    context, length = config.parallel.context, config.data.sequence_length
    if context > 1 and length % (2 * context):
        fitting = [size for size in range(2, 2 * context) if length % (2 * size) == 0]
        yield Problem(
            path="parallel.context",
            got=context,
            expected=f"a size c such that 2c divides data.sequence_length {length}: each rank holds two pieces",
            remedy=f"parallel.context one of {[1, *fitting]}, or data.sequence_length={_round_up(length, context)}",
        )


def _round_up(length: int, context: int) -> int:
    return -(-length // (2 * context)) * 2 * context


def _check_exchange(config: RunConfig) -> Iterator[Problem]:
    parallel, model = config.parallel, config.model
    exchange, path = parallel.context_exchange, "parallel.context_exchange"
    if exchange == "all_gather" or parallel.context == 1:
        return
    if config.precision.layer_backend == "portable":
        yield Problem(path=path, got=exchange, expected="all_gather with portable layers", remedy=f"{path}=all_gather")
    if exchange == "p2p" and model.windows and any(window is not None for window in model.windows):
        yield Problem(
            path=path,
            got=exchange,
            expected="all_gather or a2a with windows: the ring exchange does not support windows",
            remedy=f"{path}=all_gather",
        )
    ranks = parallel.tensor * parallel.context
    if exchange == "a2a" and (model.num_attention_heads % ranks or model.query_groups % ranks):
        yield Problem(
            path=path,
            got=exchange,
            expected=f"heads that tensor {parallel.tensor} x context {parallel.context} ranks can share; there are "
            f"{model.num_attention_heads} query heads and {model.query_groups} key/value heads",
            remedy="parallel.context_exchange=all_gather",
        )


def _check_dropout(config: RunConfig) -> Iterator[Problem]:
    needs = {
        "model.windows": bool(config.model.windows),
        "data.document_mask": config.data.document_mask,
        f"objective.kind={config.objective.kind}": config.objective.kind != "lm",
        "parallel.context": config.parallel.context > 1,
    }
    if (
        config.model.attention_dropout
        and config.precision.layer_backend != "transformer_engine"
        and any(needs.values())
    ):
        yield Problem(
            path="model.attention_dropout",
            got=config.model.attention_dropout,
            expected=f"0 with {' and '.join(name for name, used in needs.items() if used)} in portable layers",
            remedy="model.attention_dropout=0, or precision.backend=transformer_engine",
        )


def _check_documents(config: RunConfig) -> Iterator[Problem]:
    if not config.separates_documents:
        return
    option, value = (
        ("data.document_mask", True) if config.data.document_mask else ("objective.kind", config.objective.kind)
    )
    scaling, length = config.model.rope.scaling, config.data.sequence_length
    if isinstance(scaling, DynamicScaling) and length > scaling.original_max_position_embeddings:
        yield Problem(
            path=option,
            got=value,
            expected="documents not kept apart: the frequencies of dynamic rotary scaling depend on the sample",
            remedy="model.rope.scaling.type=ntk or yarn, or a data.sequence_length of at most "
            f"{scaling.original_max_position_embeddings}",
        )
    if config.parallel.context > 1 and config.precision.layer_backend == "transformer_engine":
        yield Problem(
            path=option,
            got=value,
            expected="documents not kept apart: with parallel.context > 1 Transformer Engine needs them padded",
            remedy="precision.backend=portable, or parallel.context=1",
        )
