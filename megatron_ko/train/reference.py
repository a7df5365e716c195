"""Log-probabilities of answers under the reference model: computed once, by the run itself, and stored beside the data.

The reference is the model that the run starts with. What decides the values is in the name of their file, so that a
file is never read for another model, other data or another precision; started again after a kill, the pass goes on.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from megatron_ko.artifacts import lineage
from megatron_ko.artifacts.native import find_pretrained
from megatron_ko.config import RunConfig
from megatron_ko.data.tokenizer.tokenizer import Tokenizer
from megatron_ko.data.tokens.marked import MarkedReader
from megatron_ko.data.training.batch import Batch, Collator
from megatron_ko.data.training.packs import PackedDataset, PackOptions
from megatron_ko.data.training.sources import Shard
from megatron_ko.errors import DataError
from megatron_ko.log import get_logger
from megatron_ko.models.specs import uses_transformer_engine
from megatron_ko.objectives import LossOutput, Term, Unit
from megatron_ko.objectives.preference import AnswerObjective
from megatron_ko.parallel.collectives import barrier, broadcast_object
from megatron_ko.parallel.groups import Groups
from megatron_ko.storage.files import explain_disk_errors, write_atomic
from megatron_ko.train.engine import Engine
from megatron_ko.train.loss_sums import count_units
from megatron_ko.train.start import start_step
from megatron_ko.train.step import forward_backward

_log = get_logger(__name__)
# Steps between two saves of what is done.
_SAVE_EVERY = 50
# By how much the log-probability of a token may differ on average when answers are computed in other packs.
_NOISE = {"fp32": 1e-4, "fp16": 1e-2, "bf16": 2e-2}


@dataclass(frozen=True)
class ReferenceKey:
    """Everything that the values depend on.

    Attributes:
        weights: hash of the reference's weights, or how they were drawn.
        tokenizer, template: fingerprint and hash.
        data: hashes of tokens and marks.
        sequence_length: of the packs.
        precision: data type and recipe.
        layers: back end.
    """

    weights: str
    tokenizer: str
    template: str
    data: tuple[str, str]
    sequence_length: int
    precision: str
    layers: str

    @property
    def digest(self) -> str:
        """Names the file."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:16]


class AnswerSums(AnswerObjective):
    """An objective without a loss: keeps the log-probabilities of the answers of each micro-batch, in order."""

    terms: tuple[Term, ...] = (Term("nothing", Unit.PAIR),)

    def __init__(self, groups: Groups) -> None:
        super().__init__(groups)
        self.found: list[Tensor] = []

    def count(self, batch: Batch) -> dict[Unit, Tensor]:
        """Nothing is counted."""
        nothing = torch.zeros((), dtype=torch.int64, device=batch.tokens.device)
        return {Unit.PAIR: nothing, Unit.TOKEN: nothing}

    def loss(self, output: Tensor, batch: Batch) -> LossOutput:
        """Keep the sums [b * d]; the loss is 0."""
        self.found.append(self.answer_sums(output, batch))
        return LossOutput({term.name: output.sum() * 0 for term in self.terms})


def reference_path(config: RunConfig, shard: Shard, tokenizer: Tokenizer) -> Path:
    """PREFIX.reference-KEY.npy, or of that name in ``data.cache_dir``."""
    folder = config.data.cache_dir or shard.prefix.parent
    return folder / f"{shard.prefix.name}.reference-{key_of(config, shard, tokenizer).digest}.npy"


def is_missing(config: RunConfig, shards: Sequence[Shard], tokenizer: Tokenizer) -> bool:
    """Whether values of a source have to be computed. A collective: another rank may not see a file yet."""
    return bool(broadcast_object(not all(reference_path(config, shard, tokenizer).is_file() for shard in shards)))


def key_of(config: RunConfig, shard: Shard, tokenizer: Tokenizer) -> ReferenceKey:
    """The key of a source's reference values in this run."""
    chat, hashes = shard.manifest.chat, shard.manifest.sha256
    assert chat is not None
    return ReferenceKey(
        weights=_weights(config),
        tokenizer=tokenizer.fingerprint,
        template=chat.template,
        data=(hashes["bin"], hashes["marks"]),
        sequence_length=config.data.sequence_length,
        precision=config.precision.summary,
        layers="transformer_engine" if uses_transformer_engine(config.precision.layer_backend) else "portable",
    )


def _weights(config: RunConfig) -> str:
    """The weights that the run has started with, or is going to."""
    record = lineage.read(config.run.dir) if (config.run.dir / lineage.FILE).is_file() else None
    if record is not None and record.get("parents"):
        return str(record["parents"][0]["weights"])
    if config.checkpoint.start_from is not None:
        return find_pretrained(config.checkpoint.start_from, start_step(config)).weights_hash
    return f"drawn with seed {config.run.seed}: {config.model.model_dump_json()}"


class ReferencePass:
    """Computes what is missing.

    Args:
        config: of the run.
        engine: its model holds the reference's weights.
        tokenizer: of the run.
        collate: makes batches.
    """

    def __init__(self, config: RunConfig, engine: Engine, tokenizer: Tokenizer, collate: Collator) -> None:
        self._config, self._tokenizer, self._collate = config, tokenizer, collate
        self._objective = AnswerSums(engine.groups)
        self._engine = replace(engine, objective=self._objective)

    def values(self, shard: Shard) -> np.ndarray:
        """[documents] float64, in nats. A collective.

        Raises:
            DataError: they cannot be stored.
        """
        path = reference_path(self._config, shard, self._tokenizer)
        if not broadcast_object(path.is_file()):
            self._compute(shard, path)
        held: np.ndarray = np.load(path)
        return held

    def of_all(self, shards: Sequence[Shard], same: bool) -> dict[str, np.ndarray]:
        """The values of every source, by its key. A collective.

        Args:
            shards: the sources.
            same: whether the model still is the reference, so that stored values can be checked.
        """
        values = {shard.key: self.values(shard) for shard in shards}
        for shard in shards if same else ():
            self.check(shard, values[shard.key])
        return values

    def check(self, shard: Shard, values: np.ndarray) -> None:
        """Compute some answers again, and compare. A collective.

        Raises:
            DataError: the stored values are not those of this model.
        """
        packs = self._packs(shard)
        indices = range(min(len(packs), self._config.training.global_batch_size))
        documents = [document for index in indices for document in packs.documents(index)]
        again = self._sums(packs, indices)
        marked = MarkedReader(shard.prefix)
        tokens = np.array([np.count_nonzero(marked.marks(document)[1:]) for document in documents])
        apart = float(np.abs(again - values[documents]).sum() / tokens.sum())
        limit = _NOISE[self._config.precision.dtype]
        if not apart <= limit:
            raise DataError(
                f"the stored reference of {shard.prefix} is not the model that this run starts with",
                got=f"{apart:.2e} nats a token apart",
                expected=f"at most {limit:.0e} in {self._config.precision.dtype}",
                remedy=f"remove {shard.prefix.name}.reference-*: they are computed again",
            )
        _log.info("reference   %s: %.1e nats a token from this model", shard.prefix.name, apart)

    def _compute(self, shard: Shard, path: Path) -> None:
        packs, first = self._packs(shard), self._engine.groups.rank == 0
        partial = path.with_suffix(".partial.npz")
        done, values = broadcast_object(_read_partial(partial, len(MarkedReader(shard.prefix).reader)))
        step = self._config.training.global_batch_size
        starts = range(done, len(packs), step)
        _log.info("reference   %s: %d of %d samples to compute", shard.prefix.name, len(packs) - done, len(packs))
        with explain_disk_errors(path.parent, "set data.cache_dir to a folder that can be written"):
            for number, start in enumerate(starts):
                indices = range(start, min(start + step, len(packs)))
                documents = [document for index in indices for document in packs.documents(index)]
                values[documents] = self._sums(packs, indices)
                if first and number % _SAVE_EVERY == _SAVE_EVERY - 1:
                    _write(partial, done=indices.stop, values=values)
                    _log.info("reference   %s: %d of %d", shard.prefix.name, indices.stop, len(packs))
            if first:
                key = key_of(self._config, shard, self._tokenizer)
                described = json.dumps(asdict(key), ensure_ascii=False, indent=2) + "\n"
                write_atomic(path.with_suffix(".json"), described.encode("utf-8"))
                _write(path, values=values)
                partial.unlink(missing_ok=True)
        barrier()

    def _packs(self, shard: Shard) -> PackedDataset:
        marked = MarkedReader(shard.prefix)
        data, tokenizer = self._config.data, self._tokenizer
        padding = tokenizer.eod if tokenizer.pad is None else tokenizer.pad
        cache = data.cache_dir or shard.prefix.parent / "cache"
        return PackedDataset(marked, range(len(marked)), PackOptions(data.sequence_length, 0, padding, cache))

    def _sums(self, packs: PackedDataset, indices: range) -> np.ndarray:
        """Log-probabilities of the documents of samples, in order, the same on every rank."""
        engine, groups = self._engine, self._engine.groups
        micro = self._config.training.micro_batch_size
        across = micro * groups.dp_size
        rounds = -(-len(indices) // across)
        if groups.vp_size > 1:  # the interleaved schedule needs a multiple of the number of stages
            rounds = -(-rounds // groups.pp_size) * groups.pp_size
        mine = [range(first, first + micro) for first in self._firsts(rounds, across)]
        filled = [[indices[min(place, len(indices) - 1)] for place in places] for places in mine]
        batches = [self._collate(packs, chosen).to(engine.device) for chosen in filled]
        self._objective.found.clear()
        for chunk in engine.model:
            chunk.eval()
        with torch.no_grad():
            forward_backward(engine, batches, count_units(engine, batches), forward_only=True)
        for chunk in engine.model:
            chunk.train()
        counts = [len(packs.documents(index)) for index in indices]
        starts = np.concatenate(([0], np.cumsum(counts)))
        whole = torch.zeros(int(starts[-1]), dtype=torch.float64, device=engine.device)
        # Of each answer a single rank has the value; the others add nothing.
        for places, sums in zip(mine, self._objective.found, strict=False) if self._tells() else ():
            for place, row in zip(places, sums.double().view(micro, -1), strict=True):
                if place < len(indices):
                    whole[starts[place] : starts[place + 1]] = row[: counts[place]]
        torch.distributed.all_reduce(whole)
        values: np.ndarray = whole.cpu().numpy()
        return values

    def _firsts(self, rounds: int, across: int) -> Iterator[int]:
        """Place of the first sample of each micro-batch of this rank."""
        micro, rank = self._config.training.micro_batch_size, self._engine.groups.dp_rank
        yield from (number * across + rank * micro for number in range(rounds))

    def _tells(self) -> bool:
        groups = self._engine.groups
        return groups.is_last_stage and groups.tp_rank == 0 and groups.cp_rank == 0


def _read_partial(path: Path, documents: int) -> tuple[int, np.ndarray]:
    """How many samples are done, and the values so far."""
    if path.is_file():
        with np.load(path) as held:
            return int(held["done"]), held["values"]
    return 0, np.full(documents, np.nan)


def _write(path: Path, *, values: np.ndarray, done: int | None = None) -> None:
    import io

    content = io.BytesIO()
    if done is None:
        np.save(content, values)
    else:
        np.savez(content, done=done, values=values)
    write_atomic(path, content.getvalue())
