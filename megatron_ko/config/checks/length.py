"""Checks whether sequence length, schedule and data fit together."""

from collections.abc import Iterator

from megatron_ko.config.problems import Problem
from megatron_ko.config.run import RunConfig


def check_lengths(config: RunConfig) -> Iterator[Problem]:
    """Check that sequences fit the context of the network, and that the batch has whole micro-batches."""
    if config.data.sequence_length > config.model.max_position_embeddings:
        yield Problem(
            path="data.sequence_length",
            got=config.data.sequence_length,
            expected=f"at most model.max_position_embeddings {config.model.max_position_embeddings}",
            remedy=f"data.sequence_length={config.model.max_position_embeddings}",
        )
    batch, micro_batch = config.training.global_batch_size, config.training.micro_batch_size
    if batch % micro_batch:
        yield Problem(
            path="training.global_batch_size",
            got=batch,
            expected=f"a multiple of micro_batch_size {micro_batch}, on any number of ranks",
            remedy=f"training.global_batch_size={-(-batch // micro_batch) * micro_batch}, or another micro_batch_size",
        )


def check_reference(config: RunConfig) -> Iterator[Problem]:
    """Check that there is a model to compare with."""
    if config.objective.needs_reference and config.checkpoint.start_from is None:
        yield Problem(
            path="checkpoint.start_from",
            got=None,
            expected=f"a model: objective.kind={config.objective.kind} compares with the one that the run starts with",
            remedy="checkpoint.start_from=RUN, for example the run of SFT",
        )


def check_validation(config: RunConfig) -> Iterator[Problem]:
    """Check that there is something to compare where the best validation decides."""
    stopping = config.training.early_stopping
    deciding = {"training.early_stopping": stopping is not None, "checkpoint.keep_best": config.checkpoint.keep_best}
    for path in (path for path, asked in deciding.items() if asked):
        if not (config.eval.samples and config.eval.interval):
            yield Problem(
                path=path,
                got=f"eval.interval={config.eval.interval}, eval.samples={config.eval.samples}",
                expected="validations in the course of the run",
                remedy="eval.interval=100, with eval.samples above 0",
            )
    if stopping and stopping.metric != "valid_loss" and config.objective.kind in ("lm", "sft", "kto"):
        yield Problem(
            path="training.early_stopping.metric",
            got=stopping.metric,
            expected=f"valid_loss with objective.kind={config.objective.kind}: there are no pairs",
            remedy="training.early_stopping.metric=valid_loss",
        )


def check_optim(config: RunConfig) -> Iterator[Problem]:
    """Check that the phases of the schedule fit the steps of the run."""
    optim, steps = config.optim, config.training.steps
    if optim.warmup_steps >= steps:
        yield Problem(
            path="optim.warmup_steps",
            got=optim.warmup_steps,
            expected=f"fewer than training.steps {steps}",
            remedy=f"optim.warmup_steps={steps // 10}, or more training.steps",
        )
    if optim.decay_steps is not None and optim.decay_steps + optim.warmup_steps > steps:
        yield Problem(
            path="optim.decay_steps",
            got=optim.decay_steps,
            expected=f"at most {steps - optim.warmup_steps}, the steps after warm-up",
            remedy="fewer of them, or more training.steps",
        )


def check_data(config: RunConfig) -> Iterator[Problem]:
    """Check sources, weights and split."""
    weights = [source.weight for source in config.data.sources]
    if any(weight is None for weight in weights) and any(weight is not None for weight in weights):
        yield Problem(
            path="data.sources",
            got=f"weights {weights}",
            expected="a weight for every source, or for none",
            remedy="give the others a weight, too, or remove all weights: then the number of tokens decides",
        )
    prefixes = [source.prefix for source in config.data.sources]
    if len(set(prefixes)) < len(prefixes):
        yield Problem(
            path="data.sources",
            got=[str(p) for p in prefixes if prefixes.count(p) > 1],
            expected="each prefix only once",
            remedy="raise its weight instead",
        )
    train, valid, test = config.data.split
    if min(train, valid, test) < 0 or train == 0:
        yield Problem(
            path="data.split",
            got=config.data.split,
            expected="weights >= 0, with a part for training",
            remedy="data.split=[98,2,0]",
        )
    if config.eval.samples and not valid:
        yield Problem(
            path="data.split",
            got=config.data.split,
            expected=f"a validation part, because eval.samples is {config.eval.samples}",
            remedy="data.split=[98,2,0], or eval.samples=0",
        )
