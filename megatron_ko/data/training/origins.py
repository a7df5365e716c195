"""Which source each sample of a mixture comes from, so that tokens and losses can be told by source."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import numpy as np

from megatron_ko.config.data import Source

if TYPE_CHECKING:  # the names of sources are told where PyTorch is not loaded
    import torch

_SHARD = re.compile(r"-\d{5}-of-\d{5}$")


# Tensors [s] by name, as megatron-core gives them.
TrainingSample: TypeAlias = "dict[str, torch.Tensor]"


class SampleDataset(Protocol):
    """What gives numbered samples."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> TrainingSample: ...


@dataclass(frozen=True)
class Reading:
    """What was read before this session.

    Attributes:
        samples: of the mixture.
        by_dataset: of each dataset of it, by the key of its content.
    """

    samples: int = 0
    by_dataset: Mapping[str, int] = field(default_factory=dict)


class MixtureDataset:
    """Numbered samples of a mixture, and the source of each.

    A mixture whose weights or sources have changed goes on in each dataset where the earlier one had stopped reading.

    Args:
        dataset: megatron-core's; one that mixes several says in ``dataset_index`` which of them gives sample n.
        names: the source of each mixed dataset; several shards of one source have its name.
        keys: names the content of each dataset.
        before: what was read of them already; samples before it are not asked for.
    """

    def __init__(
        self, dataset: Any, names: Sequence[str], keys: Sequence[str] = ("",), before: Reading | None = None
    ) -> None:
        self._dataset, self._mixed = dataset, getattr(dataset, "dataset_index", None)
        self.sources = tuple(dict.fromkeys(names))
        self._source_of = np.array([self.sources.index(name) for name in names])
        self._keys, self._shift = tuple(keys), np.zeros(len(keys), dtype=np.int64)
        if before is not None:
            counted = self._count(range(before.samples))
            self._shift = np.array([before.by_dataset.get(key, 0) for key in keys], dtype=np.int64) - counted

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> TrainingSample:
        number, within = self._place(index)
        sample: TrainingSample = self._parts()[number][within]
        return sample if self._mixed is None else {"dataset_id": number, **sample}

    def count_by_dataset(self, indices: range) -> dict[str, int]:
        """How many of these samples come from each dataset, by the key of its content."""
        return dict(zip(self._keys, self._count(indices).tolist(), strict=True))

    def _count(self, indices: range) -> np.ndarray:
        if self._mixed is None:
            return np.array([len(indices)], dtype=np.int64)
        chosen = self._mixed[indices.start : indices.stop]
        return np.bincount(chosen, minlength=len(self._keys)).astype(np.int64)

    def source_numbers(self, indices: Sequence[int]) -> np.ndarray:
        """[n] place in ``sources`` of what each sample comes from."""
        chosen = np.asarray(indices, dtype=np.int64)
        mixed = np.zeros(len(chosen), dtype=np.int64) if self._mixed is None else self._mixed[chosen]
        found: np.ndarray = self._source_of[mixed]
        return found

    def tokens_by_source(self, indices: range, length: int) -> dict[str, int]:
        """Trained tokens of these samples, of ``length`` positions each, by source.

        Of text every token is trained; datasets of rows know it of each sample (``trained_tokens``).
        """
        if not any(hasattr(dataset, "trained_tokens") for dataset in self._parts()):
            return {name: count * length for name, count in self.count_by_source(indices).items()}
        tokens = dict.fromkeys(self.sources, 0)
        for index in indices:
            number, within = self._place(index)
            dataset = self._parts()[number]
            trained = dataset.trained_tokens(within) if hasattr(dataset, "trained_tokens") else length
            tokens[self.sources[self._source_of[number]]] += trained
        return {name: count for name, count in tokens.items() if count}

    def _parts(self) -> Sequence[Any]:
        """The datasets that are mixed; the only one, if none are."""
        return (self._dataset,) if self._mixed is None else self._dataset.datasets

    def _place(self, index: int) -> tuple[int, int]:
        """Which of the datasets gives a sample, and which of its samples that is."""
        if self._mixed is None:
            return 0, index + int(self._shift[0])
        number = int(self._mixed[index])
        return number, int(self._dataset.dataset_sample_index[index]) + int(self._shift[number])

    def count_by_source(self, indices: Sequence[int]) -> dict[str, int]:
        """How many of these samples come from each source; those that give none are left out."""
        counts = np.bincount(self.source_numbers(indices), minlength=len(self.sources)).tolist()
        return {name: count for name, count in zip(self.sources, counts, strict=True) if count}


def source_names(sources: Sequence[Source]) -> list[str]:
    """What each source is called: its name, else its prefix without folder and number of the shard.

    Two folders that hold a file of the same name are told apart by the whole prefix.
    """
    unnumbered = [source.prefix.with_name(_SHARD.sub("", source.prefix.name)) for source in sources]
    places: dict[str, set[Path]] = {}
    for prefix in unnumbered:
        places.setdefault(prefix.name, set()).add(prefix)
    return [
        source.name or (prefix.name if len(places[prefix.name]) == 1 else str(prefix))
        for source, prefix in zip(sources, unnumbered, strict=True)
    ]
