"""Rows of conversations or preferences as training samples: whole rows packed together, numbered by document."""

import hashlib
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from megatron_ko.data.tokens.indexed import IndexedReader
from megatron_ko.data.tokens.marked import MarkedReader
from megatron_ko.data.tokens.marks import Mark, is_trained
from megatron_ko.data.training.origins import TrainingSample
from megatron_ko.data.training.packing import PackPlan, plan_packs
from megatron_ko.storage.files import explain_disk_errors, write_atomic


@dataclass(frozen=True)
class PackOptions:
    """How rows are packed.

    Attributes:
        capacity: positions of a sample.
        seed: decides the order of rows and packs.
        padding: token that fills what is left of a pack; nothing is predicted from it or attends to it.
        cache: folder for the plans.
        filler: text whose tokens fill what is left instead, and are trained; it may be cut anywhere.
    """

    capacity: int
    seed: int
    padding: int
    cache: Path
    filler: IndexedReader | None = None


class PackedDataset:
    """Numbered packs, epoch after epoch; each epoch packs all rows anew, in an order drawn from (seed, epoch).

    Args:
        marked: the rows.
        rows: which of them.
        options: how they are packed.
        samples: how many packs are wanted; None: those of one epoch.
        reference: [documents] log-probability of each answer under a reference model, in nats.
    """

    def __init__(
        self,
        marked: MarkedReader,
        rows: range,
        options: PackOptions,
        samples: int | None = None,
        reference: np.ndarray | None = None,
    ) -> None:
        self._marked, self._rows, self._options = marked, rows, options
        self._reference = reference
        self._lengths = marked.positions()[rows.start : rows.stop]
        self._plans: dict[int, PackPlan] = {}
        # Of every epoch so far, the first pack, and how many positions were filled before it.
        self._firsts, self._filled = [0], [0]
        self._length = len(self.plan(0)) if samples is None else samples

    def __len__(self) -> int:
        return self._length

    def plan(self, epoch: int) -> PackPlan:
        """The packs of an epoch, kept in the cache."""
        if epoch not in self._plans:
            path = self._options.cache / self._key() / f"epoch-{epoch:05d}.npz"
            if not path.is_file():
                made = plan_packs(self._lengths, self._options.capacity, self._options.seed, epoch)
                with explain_disk_errors(self._options.cache, "set data.cache_dir to a folder that can be written"):
                    _write(path, made)
            self._plans = {**dict(list(self._plans.items())[-1:]), epoch: _read(path)}
        return self._plans[epoch]

    def locate(self, index: int) -> tuple[int, int]:
        """The epoch of a sample, and the number of its pack there."""
        while self._firsts[-1] <= index:
            plan = self.plan(len(self._firsts) - 1)
            self._firsts.append(self._firsts[-1] + len(plan))
            self._filled.append(self._filled[-1] + int(plan.missing.sum()))
        epoch = int(np.searchsorted(self._firsts, index, side="right")) - 1
        return epoch, index - self._firsts[epoch]

    def documents(self, index: int) -> list[int]:
        """The documents of a sample, in the order in which they lie there."""
        epoch, pack = self.locate(index)
        rows = self.plan(epoch).pack(pack) + self._rows.start
        return [document for row in rows.tolist() for document in self._marked.documents(row)]

    def trained_tokens(self, index: int) -> int:
        """How many tokens of a sample are trained, those of the filler included."""
        epoch, pack = self.locate(index)
        filled = int(self.plan(epoch).missing[pack]) if self._options.filler else 0
        marks = (self._marked.marks(document)[1:] for document in self.documents(index))
        return filled + sum(int(np.count_nonzero(is_trained(mark))) for mark in marks)

    def __getitem__(self, index: int) -> TrainingSample:
        """A pack of s positions and d documents.

        ``tokens``, ``labels``, ``position_ids``, ``documents`` [s] int64 and ``loss_mask`` [s] float32, 1 where a mark
        is not 0; by document ``verdicts`` [d] (a ``Mark``), ``trained`` [d] int64 tokens and ``reference`` [d] float64.
        """
        epoch, pack = self.locate(index)
        capacity = self._options.capacity
        numbers = self.documents(index)
        tokens, labels, marks, documents = (np.zeros(capacity, dtype=np.int64) for _ in range(4))
        verdicts, trained = (np.zeros(len(numbers), dtype=np.int64) for _ in range(2))
        at = 0
        for place, document in enumerate(numbers):
            ids, mark = self._marked.ids(document), self._marked.marks(document)
            part = slice(at, at + len(ids) - 1)
            tokens[part], labels[part], marks[part], documents[part] = ids[:-1], ids[1:], mark[1:], place
            verdicts[place], trained[place] = mark.max(), np.count_nonzero(mark[1:])
            at = part.stop
        documents[at:] = len(numbers)
        self._fill(tokens[at:], labels[at:], marks[at:], epoch, pack)
        sample = {
            "tokens": tokens,
            "labels": labels,
            "loss_mask": (marks > 0).astype(np.float32),
            "position_ids": np.arange(capacity),
            "documents": documents,
            "verdicts": verdicts,
            "trained": trained,
        }
        if self._reference is not None:
            sample["reference"] = self._reference[numbers]
        return {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in sample.items()}

    def _fill(self, tokens: np.ndarray, labels: np.ndarray, marks: np.ndarray, epoch: int, pack: int) -> None:
        """Fill the end of a pack: with padding, or with the next tokens of the filler."""
        filler = self._options.filler
        if filler is None or not len(tokens):
            tokens[:] = labels[:] = self._options.padding
            return
        before = self._filled[epoch] + int(self.plan(epoch).missing[:pack].sum())
        held = filler.stream(before, len(tokens) + 1)
        tokens[:], labels[:], marks[:] = held[:-1], held[1:], Mark.GOOD

    def _key(self) -> str:
        hashes = self._marked.manifest.sha256
        options = self._options
        described = (hashes["bin"], hashes["idx"], options.capacity, options.seed, self._rows.start, self._rows.stop)
        return "packs-" + hashlib.sha256(repr(described).encode()).hexdigest()[:24]


def _write(path: Path, plan: PackPlan) -> None:
    content = io.BytesIO()
    np.savez(content, rows=plan.rows, starts=plan.starts, missing=plan.missing)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, content.getvalue())


def _read(path: Path) -> PackPlan:
    with np.load(path) as held:
        return PackPlan(held["rows"], held["starts"], held["missing"])
