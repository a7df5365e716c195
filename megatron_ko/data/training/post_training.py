"""The datasets of a run on conversations or preferences, and of its replay: texts beside them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from megatron_ko.config import DataConfig
from megatron_ko.data.tokenizer.tokenizer import Tokenizer
from megatron_ko.data.tokens.marked import MarkedReader
from megatron_ko.data.training.batch import number_documents
from megatron_ko.data.training.origins import SampleDataset, TrainingSample
from megatron_ko.data.training.packs import PackedDataset, PackOptions
from megatron_ko.data.training.sources import Shard, check_filler, split_rows

# Builds the text of one source: (number of the source, samples wanted).
TextBuilder = Callable[[int, int], SampleDataset]


@dataclass(frozen=True)
class Blend:
    """Datasets mixed by megatron-core's rule; sample n does not depend on how many are wanted.

    Attributes:
        datasets: that are mixed.
        dataset_index, dataset_sample_index: [n] which of them gives a sample, and which of its samples.
    """

    datasets: Sequence[SampleDataset]
    dataset_index: np.ndarray
    dataset_sample_index: np.ndarray

    @classmethod
    def of(cls, datasets: Sequence[SampleDataset], weights: Sequence[float], samples: int) -> "Blend":
        """Mix ``datasets``, each of which gives as many samples as it is asked for."""
        from megatron.core.datasets import helpers

        index, within = np.zeros(samples, dtype=np.int16), np.zeros(samples, dtype=np.int64)
        shares = np.array(weights, dtype=np.float64)
        helpers.build_blending_indices(index, within, shares, len(datasets), samples, False)
        return cls(datasets, index, within)

    def __len__(self) -> int:
        return len(self.dataset_index)

    def __getitem__(self, index: int) -> TrainingSample:
        return self.datasets[self.dataset_index[index]][int(self.dataset_sample_index[index])]


@dataclass(frozen=True)
class TextAmongRows:
    """Samples of text in the form of packs: documents numbered, no answers.

    Attributes:
        dataset: the text.
        document_start: token that begins a document, if documents are kept apart.
    """

    dataset: SampleDataset
    document_start: int | None

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> TrainingSample:
        sample = self.dataset[index]
        tokens, nothing = sample["tokens"], torch.zeros(0, dtype=torch.int64)
        documents = torch.zeros_like(tokens)
        if self.document_start is not None:
            documents = number_documents(tokens[None], self.document_start)[0]
        return {**sample, "documents": documents, "verdicts": nothing, "trained": nothing}


def build_rows(
    data: DataConfig,
    shards: Sequence[Shard],
    split: int,
    samples: int,
    seed: int,
    tokenizer: Tokenizer,
    text: TextBuilder,
    references: Sequence[np.ndarray | None],
) -> Any:
    """The dataset of one part of a run with rows.

    Args:
        data: sequence length, split, filler.
        shards: the sources.
        split: 0 training, 1 validation, 2 test.
        samples: wanted.
        seed: decides the order.
        tokenizer: of the run.
        text: builds the sources that hold text.
        references: of each source, the log-probabilities of its documents under the reference model.
    """
    filler = check_filler(data, tokenizer) if data.filler and split == 0 else None
    datasets: list[SampleDataset] = []
    for number, (shard, reference) in enumerate(zip(shards, references, strict=True)):
        wanted = int(samples * shard.weight) + 2
        if shard.kind == "text":
            start = tokenizer.eod if data.document_mask else None
            datasets.append(TextAmongRows(text(number, wanted), start))
            continue
        marked = MarkedReader(shard.prefix)
        options = PackOptions(
            capacity=data.sequence_length,
            seed=seed,
            padding=tokenizer.eod if tokenizer.pad is None else tokenizer.pad,
            cache=data.cache_dir or shard.prefix.parent / "cache",
            filler=filler,
        )
        rows = split_rows(len(marked), data.split)[split]
        datasets.append(PackedDataset(marked, rows, options, samples if len(shards) == 1 else wanted, reference))
    return datasets[0] if len(datasets) == 1 else Blend.of(datasets, [shard.weight for shard in shards], samples)
