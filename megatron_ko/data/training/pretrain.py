"""Indexed tokens to training batches, on megatron-core's own datasets.

A sample is a function of (seed, its number) alone. megatron-core shuffles all epochs of a request together, so that
asking for more steps would change the samples that were already consumed; here an epoch is laid out once, and every
further epoch is a permutation of it drawn from (seed, epoch).
"""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig

from megatron_ko.config import DataConfig
from megatron_ko.config.objective import Kind
from megatron_ko.data.tokenizer.tokenizer import Tokenizer
from megatron_ko.data.training.origins import MixtureDataset, Reading, source_names
from megatron_ko.data.training.post_training import build_rows
from megatron_ko.data.training.preview import count_epochs
from megatron_ko.data.training.sources import (
    SPLITS,
    CorpusEntry,
    Shard,
    cache_key,
    check_kinds,
    check_sources,
    check_split,
    expand_sources,
)
from megatron_ko.errors import DataError
from megatron_ko.log import get_logger
from megatron_ko.storage.files import explain_disk_errors
from megatron_ko.storage.locks import wait_for_lock

_log = get_logger(__name__)
_COMPLETE = "complete"
_VALIDATION_SEED = 0
# Log-probabilities [documents] of a source under a reference model, by the key of the source.
References = Mapping[str, np.ndarray]
_NO_REFERENCES: References = {}


@dataclass(frozen=True)
class Datasets:
    """What a run reads.

    Attributes:
        train: as long as was asked for, or longer; epochs follow each other.
        valid, test: None when nothing was asked for; never longer than one pass over their part.
        corpus: the sources, for the lineage.
        epochs: how often each source is gone through in training, by its name.
        shards: the checked sources.
    """

    train: MixtureDataset
    valid: MixtureDataset | None
    test: MixtureDataset | None
    corpus: list[CorpusEntry]
    epochs: dict[str, float]
    shards: tuple[Shard, ...]


class EpochDataset(GPTDataset):
    """One epoch of megatron-core's samples, and as many permutations of it as are asked for."""

    def __init__(
        self,
        indexed_dataset: Any,
        dataset_path: str | None,
        indexed_indices: np.ndarray,
        num_samples: int | None,
        index_split: Any,
        config: GPTDatasetConfig,
    ) -> None:
        super().__init__(indexed_dataset, dataset_path, indexed_indices, None, index_split, config)
        self._epoch_length: int = super().__len__()
        self._asked = num_samples or 0
        self._permutation: tuple[int, np.ndarray] = (0, np.arange(0))

    def __len__(self) -> int:
        return max(self._epoch_length, self._asked)

    def __getitem__(self, idx: int) -> dict[str, torch.Tensor]:
        epoch, position = divmod(int(idx), self._epoch_length)
        if epoch:
            position = int(self._order(epoch)[position])
        sample: dict[str, torch.Tensor] = super().__getitem__(position)
        return sample

    def _query_document_sample_shuffle_indices(self, idx: int) -> Any:
        """megatron-core's: tokens of a sample [s + 1] and its documents (0.19: their lengths too), checked here."""
        found = super()._query_document_sample_shuffle_indices(idx)
        tokens, documents = found[:2]
        if len(tokens) and not 0 <= int(tokens.min()) <= int(tokens.max()) < self.config.tokenizer.ids:
            self._refuse(documents)
        return found

    def _refuse(self, documents: Sequence[int]) -> None:
        ids = self.config.tokenizer.ids
        for document in map(int, documents):
            tokens = self.dataset[document]
            if (strange := tokens[(tokens < 0) | (tokens >= ids)]).size:
                raise DataError(
                    f"{self.dataset_path}.bin holds token ids outside the vocabulary",
                    got=f"id {int(strange[0])} in document {document}, {strange.size} such ids of {tokens.size} there",
                    expected=f"0 to {ids - 1}",
                    remedy=f"megatron-ko data verify {self.dataset_path}; if it is damaged, copy it again",
                )

    def _order(self, epoch: int) -> np.ndarray:
        if self._permutation[0] != epoch:
            random = np.random.Generator(np.random.PCG64([self.config.random_seed, epoch]))
            self._permutation = epoch, random.permutation(self._epoch_length)
        return self._permutation[1]


def build_datasets(
    data: DataConfig,
    tokenizer: Tokenizer,
    num_samples: tuple[int, int, int],
    seed: int,
    before: Reading | None = None,
    kind: Kind = "lm",
    references: References = _NO_REFERENCES,
) -> Datasets:
    """Check the sources and build the datasets. With torch.distributed, every rank must call it; rank 0 builds first.

    Args:
        data: sources, split, sequence length.
        tokenizer: of the run; sources that were encoded with another one are refused.
        num_samples: sequences wanted of (train, valid, test); 0 builds nothing for that part.
        seed: decides the order of training samples.
        before: what an earlier session has read for training.
        kind: the objective, which decides what sources may hold.
        references: log-probabilities under a reference model of the documents of a source, by its key.

    Raises:
        DataError: anything wrong with the files, and a part that is asked for but has no sample.
    """
    data = data.model_copy(update={"sources": expand_sources(data.sources)})
    shards = check_sources(data, tokenizer)
    check_kinds(kind, shards)
    sizes: list[int | None] = []
    for split, asked in enumerate(num_samples):
        available = check_split(data, shards, split) if asked else 0
        capped = min(asked, available) if split else asked
        if capped < asked:
            _log.warning("%s: %d sequences instead of %d: the part has no more", SPLITS[split], capped, asked)
        sizes.append(capped or None)
    # The same sequences of held-out parts whatever the seed of a run: or two runs could not be compared.
    seeds = (seed, _VALIDATION_SEED, _VALIDATION_SEED)
    built = [
        None if size is None else _build_part(data, shards, split, size, seeds[split], tokenizer, references)
        for split, size in enumerate(sizes)
    ]
    names = source_names(data.sources)
    keys = [shard.key for shard in shards]
    train, valid, test = (
        None if part is None else MixtureDataset(part, names, keys, reading)
        for part, reading in zip(built, (before, None, None), strict=True)
    )
    assert train is not None, "a run trains"
    corpus = [shard.describe() for shard in shards]
    return Datasets(train, valid, test, corpus, count_epochs(shards, names, num_samples[0]), tuple(shards))


def _build_part(
    data: DataConfig,
    shards: Sequence[Shard],
    split: int,
    size: int,
    seed: int,
    tokenizer: Tokenizer,
    references: References,
) -> Any:
    """One part of the data: text as megatron-core samples it, or packed rows, perhaps beside text."""

    def part(samples: int) -> list[int | None]:
        return [samples if number == split else None for number in range(len(SPLITS))]

    def text(number: int, samples: int) -> Any:
        alone = data.model_copy(update={"sources": (data.sources[number],)})
        shard = replace(shards[number], weight=1.0)
        return _build_cached(alone, [shard], part(samples), seed, tokenizer)[split]

    if any(shard.kind != "text" for shard in shards):
        held = [references.get(shard.key) for shard in shards]
        return build_rows(data, shards, split, size, seed, tokenizer, text, held)
    return _build_cached(data, shards, part(size), seed, tokenizer)[split]


def _build_cached(
    data: DataConfig, shards: Sequence[Shard], sizes: Sequence[int | None], seed: int, tokenizer: Tokenizer
) -> list[Any]:
    """The parts that have a size; None for the others."""
    if not any(sizes):
        return [None] * len(sizes)
    cache = data.cache_dir or data.sources[0].prefix.parent / "cache"
    folder = cache / cache_key(data, shards, sizes, seed)
    with (
        explain_disk_errors(cache, "set data.cache_dir to a folder that can be written"),
        _process_group(),
        _whole_cache(folder),
    ):
        return _build(data, shards, sizes, seed, folder, tokenizer.vocab_size)


def _build(
    data: DataConfig, shards: Sequence[Shard], sizes: Sequence[int | None], seed: int, folder: Path, ids: int
) -> list[Any]:
    prefixes = [str(shard.prefix) for shard in shards]
    weights = [shard.weight for shard in shards] if len(shards) > 1 else None
    config = GPTDatasetConfig(
        random_seed=seed,
        sequence_length=data.sequence_length,
        blend=(prefixes, weights),
        split=",".join(f"{share:f}" for share in data.split),
        path_to_cache=str(folder),
        tokenizer=_NoTokenizer(shards[0].manifest.tokenizer_fingerprint, ids),
        reset_position_ids=False,
        reset_attention_mask=False,
        eod_mask_loss=False,
        create_attention_mask=False,
    )
    # A part that nobody asked for keeps its documents but is not built.
    config.split_matrix = [
        border if size is not None else None for border, size in zip(config.split_matrix, sizes, strict=True)
    ]
    builder = BlendedMegatronDatasetBuilder(EpochDataset, [size or 0 for size in sizes], lambda: True, config)
    try:
        built: list[Any] = builder.build()
    except Exception as error:
        # megatron-core hides a full or read-only disk in a plain Exception.
        if isinstance(error.__cause__, OSError):
            raise error.__cause__ from error
        raise
    return built


class _NoTokenizer:
    """megatron-core wants a tokenizer only for padding and masks at document borders; neither is used here.

    Attributes:
        ids: size of the vocabulary; megatron-core would take ``vocab_size`` for the type of the tokens.
    """

    vocab_size = None
    eod = -2  # no token; -1 is what megatron-core takes for padding

    def __init__(self, fingerprint: str, ids: int) -> None:
        self.ids = ids
        self.unique_identifiers = {"fingerprint": fingerprint}


@contextmanager
def _process_group() -> Iterator[None]:
    """megatron-core's blends ask for a rank: outside of a distributed program, a group of one for the moment."""
    if torch.distributed.is_initialized():
        yield
        return
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        torch.distributed.destroy_process_group()


@contextmanager
def _whole_cache(folder: Path) -> Iterator[None]:
    """Let rank 0 build into ``folder`` alone, and never read what a killed build left behind.

    megatron-core takes a file that exists for a file that is whole. Other ranks look only after rank 0 has built:
    megatron-core's builder holds them at a barrier.
    """
    if torch.distributed.get_rank() != 0:
        yield
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / f"{folder.name}.lock").open("w") as lock:
        wait_for_lock(lock)  # where there are no locks, two runs must not start on one cache at once
        if not (folder / _COMPLETE).exists() and folder.exists():
            shutil.rmtree(folder)
        yield
        (folder / _COMPLETE).touch()
