"""One micro-batch: samples stacked, documents numbered, and this rank's part where ranks share sequences."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from megatron_ko.data.training.origins import SampleDataset


@dataclass(frozen=True)
class Batch:
    """One micro-batch, or this rank's part of it where ranks share sequences.

    Attributes:
        tokens: [b, s] int64.
        labels: [b, s] int64, the tokens shifted by one.
        loss_mask: [b, s] float32, 1 where the loss counts.
        position_ids: [b, s] int64; they run through document borders. Rotary positions are relative: within a document
            it makes no difference.
        documents: [b, t] int64, the document of every token of the whole sequences; None: they are not kept apart.
        sources: [b] the number of each row's source, where the loss is told by source; else empty.
    """

    tokens: torch.Tensor
    labels: torch.Tensor
    loss_mask: torch.Tensor
    position_ids: torch.Tensor
    documents: torch.Tensor | None = None
    sources: tuple[int, ...] = ()

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and tokens of each on this rank, [b, s]."""
        rows, length = self.tokens.shape
        return rows, length

    def to(self, device: torch.device) -> "Batch":
        """The batch on a device; from pinned memory the copy is queued, not waited for."""
        return self._with(lambda tensor: tensor.to(device, non_blocking=True))

    def pinned(self) -> "Batch":
        """The batch in host memory that a GPU reads by itself."""
        return self._with(torch.Tensor.pin_memory)

    def _with(self, change: Callable[[torch.Tensor], torch.Tensor]) -> "Batch":
        tensors = {name: value for name, value in vars(self).items() if isinstance(value, torch.Tensor)}
        return replace(self, **{name: change(tensor) for name, tensor in tensors.items()})


@dataclass(frozen=True)
class Collator:
    """From samples to the batch of one rank, in host memory.

    Attributes:
        document_start: the token that begins a document, if documents are to be kept apart.
        cp_rank, cp_size: which part of each sequence is this rank's: chunks r and 2c - 1 - r of 2c.
    """

    document_start: int | None = None
    cp_rank: int = 0
    cp_size: int = 1

    def __call__(self, dataset: SampleDataset, indices: Sequence[int]) -> Batch:
        """The samples ``indices`` as one batch."""
        samples = [dataset[index] for index in indices]
        whole = {
            name: torch.stack([sample[name] for sample in samples])
            for name in ("tokens", "labels", "loss_mask", "position_ids")
        }
        documents = None if self.document_start is None else number_documents(whole["tokens"], self.document_start)
        return Batch(**{name: self._part(tensor) for name, tensor in whole.items()}, documents=documents)

    def _part(self, tensor: torch.Tensor) -> torch.Tensor:
        if self.cp_size == 1:
            return tensor
        chunks = tensor.chunk(2 * self.cp_size, dim=1)
        return torch.cat([chunks[self.cp_rank], chunks[-1 - self.cp_rank]], dim=1)


def number_documents(tokens: torch.Tensor, start: int) -> torch.Tensor:
    """Number the documents of each row [b, s]. The end-of-document token begins the next one, as in generation."""
    return (tokens == start).cumsum(dim=1)
