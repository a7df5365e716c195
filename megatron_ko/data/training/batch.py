"""One micro-batch: samples stacked, documents numbered, and this rank's part where ranks share sequences."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch.nn import functional

from megatron_ko.data.training.origins import SampleDataset, TrainingSample


@dataclass(frozen=True)
class Answers:
    """The documents of a micro-batch as answers, d a row; context ranks hold the same ones.

    Attributes:
        of_token: [b, s] int64, the answer that each token of this rank's part belongs to, counted through all rows.
        verdicts: [b * d] int64, a ``Mark``: good, bad, or neither (padding).
        trained: [b * d] int64 trained tokens.
        reference: [b * d] float64 log-probability under the reference model, in nats; None without one.
    """

    of_token: torch.Tensor
    verdicts: torch.Tensor
    trained: torch.Tensor
    reference: torch.Tensor | None = None


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
        answers: of rows of conversations and preferences; None for text.
        samples: [b] number of each row in the run.
    """

    tokens: torch.Tensor
    labels: torch.Tensor
    loss_mask: torch.Tensor
    position_ids: torch.Tensor
    documents: torch.Tensor | None = None
    sources: tuple[int, ...] = ()
    answers: Answers | None = None
    samples: tuple[int, ...] = ()

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

    def padding(self) -> torch.Tensor | None:
        """[b, s] true where nothing is: neither part of an answer or its prompt, nor trained. None for text."""
        if self.answers is None:
            return None
        return (self.answers.verdicts[self.answers.of_token] == 0) & (self.loss_mask == 0)

    def document_lengths(self) -> torch.Tensor:
        """[b, t] how many tokens the document of each token of the whole sequences has."""
        assert self.documents is not None
        lengths = torch.zeros_like(self.documents)
        lengths.scatter_add_(1, self.documents, torch.ones_like(self.documents))
        return lengths.gather(1, self.documents)

    def keep_rows(self, kept: torch.Tensor) -> "Batch":
        """The batch in which nothing counts but the rows [b] that are true."""
        answers = self.answers
        if answers is not None:
            each = len(answers.verdicts) // len(kept)
            answers = replace(answers, verdicts=answers.verdicts * kept.repeat_interleave(each))
        return replace(self, loss_mask=self.loss_mask * kept[:, None], answers=answers)

    def _with(self, change: Callable[[torch.Tensor], torch.Tensor]) -> "Batch":
        answers = None if self.answers is None else replace(self.answers, **_changed(self.answers, change))
        return replace(self, **_changed(self, change), answers=answers)


def _changed(holder: object, change: Callable[[torch.Tensor], torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: change(value) for name, value in vars(holder).items() if isinstance(value, torch.Tensor)}


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
        parts = {name: self._part(tensor) for name, tensor in whole.items()}
        if "documents" in samples[0]:
            documents = torch.stack([sample["documents"] for sample in samples])
            answers = self._answers(samples, documents)
            return Batch(**parts, documents=documents, answers=answers, samples=tuple(indices))
        documents = None if self.document_start is None else number_documents(whole["tokens"], self.document_start)
        return Batch(**parts, documents=documents)

    def _answers(self, samples: Sequence[TrainingSample], documents: torch.Tensor) -> Answers:
        """What the documents of packed samples are. There is room for padding, and for pairs side by side."""
        each = max(int(row.max()) for row in documents) + 1
        each += each % 2
        first = torch.arange(len(samples))[:, None] * each

        def by_document(name: str) -> torch.Tensor:
            rows = [functional.pad(sample[name], (0, each - len(sample[name]))) for sample in samples]
            return torch.cat(rows)

        reference = by_document("reference") if "reference" in samples[0] else None
        of_token = self._part(documents + first)
        return Answers(of_token, by_document("verdicts"), by_document("trained"), reference)

    def _part(self, tensor: torch.Tensor) -> torch.Tensor:
        if self.cp_size == 1:
            return tensor
        chunks = tensor.chunk(2 * self.cp_size, dim=1)
        return torch.cat([chunks[self.cp_rank], chunks[-1 - self.cp_rank]], dim=1)


def number_documents(tokens: torch.Tensor, start: int) -> torch.Tensor:
    """Number the documents of each row [b, s]. The end-of-document token begins the next one, as in generation."""
    return (tokens == start).cumsum(dim=1)
