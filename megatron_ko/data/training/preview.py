"""What a run is going to read: its tokenizer and sources, checked, and how often each source is gone through.

Needs no torch: a configuration is checked with its data before anybody waits for a machine.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from megatron_ko.config import RunConfig
from megatron_ko.data.tokenizer.tokenizer import Tokenizer, load_tokenizer
from megatron_ko.data.tokens.blend import MAX_EPOCHS
from megatron_ko.data.training.origins import source_names
from megatron_ko.data.training.sources import (
    Shard,
    check_filler,
    check_kinds,
    check_sources,
    check_split,
    expand_sources,
)
from megatron_ko.errors import ConfigError


@dataclass(frozen=True)
class DataPreview:
    """What a run reads.

    Attributes:
        epochs: how often each source is gone through in training, by its name.
    """

    epochs: dict[str, float]

    def line(self) -> str:
        """One line for people."""
        return "epochs      " + ", ".join(f"{name} {count:.2f}" for name, count in self.epochs.items())

    def warning(self) -> str | None:
        """A sentence about sources that are read too often, if there are any."""
        often = [f"{name} {count:.1f} times" for name, count in self.epochs.items() if count > MAX_EPOCHS]
        if not often:
            return None
        return f"read again and again: {', '.join(often)}; more than {MAX_EPOCHS:.0f} passes teach little: add text"


def preview_data(config: RunConfig) -> DataPreview:
    """Check tokenizer and sources of a run as its start does.

    Raises:
        ConfigError: the tokenizer does not fit the model.
        DataError: anything wrong with the files; a part that is asked for and has no sample.
    """
    tokenizer = load_fitting_tokenizer(config)
    data = config.data.model_copy(update={"sources": expand_sources(config.data.sources)})
    shards = check_sources(data, tokenizer)
    check_kinds(config.objective.kind, shards)
    if data.filler:
        check_filler(data, tokenizer)
    check_split(data, shards, split=0)
    if config.eval.samples:
        check_split(data, shards, split=1)
    samples = config.training.steps * config.training.global_batch_size
    return DataPreview(count_epochs(shards, source_names(data.sources), samples))


def count_epochs(shards: Sequence[Shard], names: Sequence[str], samples: int) -> dict[str, float]:
    """How often each source is gone through by so many sequences of the mixture."""
    weights: dict[str, float] = {}
    sizes: dict[str, int] = {}
    for shard, name in zip(shards, names, strict=True):
        weights[name] = weights.get(name, 0.0) + shard.weight
        sizes[name] = sizes.get(name, 0) + shard.samples[0]
    return {name: samples * weight / sizes[name] for name, weight in weights.items()}


def load_fitting_tokenizer(config: RunConfig) -> Tokenizer:
    """The tokenizer of a run.

    Raises:
        ConfigError: it has more ids than the model.
    """
    tokenizer = load_tokenizer(config.data.tokenizer)
    if tokenizer.vocab_size > config.model.vocab_size:
        raise ConfigError(
            "the tokenizer has more ids than the model has embeddings",
            got=f"model.vocab_size {config.model.vocab_size}, tokenizer {config.data.tokenizer}",
            expected=f"at least {tokenizer.vocab_size}",
            remedy=f"model.vocab_size={tokenizer.vocab_size}",
        )
    return tokenizer
