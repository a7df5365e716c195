"""Running a tiny model under any layout, and bringing back what can be compared: losses, global gradients, weights."""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from oracle import Pieces, assemble, pieces_of
from patience import PATIENCE

from megatron_ko.config import RunConfig
from megatron_ko.data.training.batch import Batch, Collator
from megatron_ko.models.adapter import attach_adapters
from megatron_ko.models.adapter_weights import MARK
from megatron_ko.models.blueprint import Blueprint
from megatron_ko.models.build import build_model
from megatron_ko.models.initialise import row_blocks
from megatron_ko.models.parameter_policy import sharded_parts
from megatron_ko.models.routing import LayerRouting
from megatron_ko.objectives import Objective, build_objective
from megatron_ko.parallel.groups import Groups, destroy, initialise
from megatron_ko.parallel.seed import seed_everything
from megatron_ko.parallel.spawn import run_ranks
from megatron_ko.train.engine import build_engine
from megatron_ko.train.schedule import lr_at
from megatron_ko.train.step import train_step

# Of four steps two come after the warm-up, and the last shows what three updates have made of the weights.
SEQUENCE, VOCABULARY, SAMPLES, STEPS = 32, 500, 8, 4
DOCUMENT_START = 3
# Configurations that one start of ranks trains: threads of groups that are over stay, and slow down what follows.
AT_ONCE = 4


def tiny_config(parallel: dict[str, Any] | None = None, **sections: dict[str, Any]) -> RunConfig:
    """A 4-layer model with grouped-query attention; ``sections`` are laid over the defaults of this test."""
    model = {
        "num_layers": 4,
        "hidden_size": 64,
        "ffn_hidden_size": 160,
        "num_attention_heads": 4,
        "num_query_groups": 2,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 64,
    }
    nowhere = Path("nowhere")
    return RunConfig.model_validate(
        {
            "run": {"dir": nowhere, "name": "parity", **sections.get("run", {})},
            "model": {**model, **sections.get("model", {})},
            "parallel": parallel or {},
            "precision": {"dtype": "fp32", **sections.get("precision", {})},
            "data": {
                "tokenizer": nowhere,
                "sources": ({"prefix": nowhere},),
                "sequence_length": SEQUENCE,
                **sections.get("data", {}),
            },
            "optim": {"lr": 1e-3, "warmup_steps": 2, **sections.get("optim", {})},
            "objective": sections.get("objective", {}),
            "adapter": sections.get("adapter"),
            "training": {
                "steps": STEPS,
                "global_batch_size": SAMPLES,
                "micro_batch_size": 2,
                **sections.get("training", {}),
            },
            "eval": {"interval": 0, "samples": 0},
            "checkpoint": {"interval": 10, **sections.get("checkpoint", {})},
        }
    )


def collect_from_ranks(function: Callable[..., Any], world_size: int, *args: Any) -> list[Any]:
    """Run ``function(*args)`` on ``world_size`` ranks; their return values, by rank.

    Raises:
        AssertionError: a rank failed; its error is on standard error.
    """
    with tempfile.TemporaryDirectory() as folder:
        code = run_ranks(_save_result, world_size, (function, args, Path(folder)), threads=1)
        assert code == 0, f"a rank ended with {code}"
        return [torch.load(Path(folder) / f"{rank}.pt", weights_only=False) for rank in range(world_size)]


def _save_result(function: Callable[..., Any], args: tuple[Any, ...], folder: Path) -> None:
    result = function(*args)
    torch.save(result, folder / f"{torch.distributed.get_rank()}.pt")


@dataclass(frozen=True)
class Outcome:
    """What a training run under one layout gave.

    Attributes:
        losses: global mean loss of every step.
        gradients: global gradient of every parameter at the first step, by name and stacked index.
        weights: the initial weights, likewise.
        grad_norms: global gradient norm of every step.
        routing: what the routers did in the last step.
    """

    losses: list[float]
    gradients: dict[str, torch.Tensor]
    weights: dict[str, torch.Tensor]
    grad_norms: list[float | None]
    routing: tuple[LayerRouting, ...]


@dataclass(frozen=True)
class RankOutcome:
    """One rank's part of an ``Outcome``."""

    losses: list[float]
    gradients: Pieces
    weights: Pieces
    grad_norms: list[float | None]
    routing: tuple[LayerRouting, ...]


def train_under(
    config: RunConfig,
    world_size: int,
    steps: int = STEPS,
    objective: Callable[[Groups], Objective[Batch]] | None = None,
) -> Outcome:
    """Train on fresh ranks."""
    return merge(collect_from_ranks(train_rank, world_size, config, steps, objective))


def train_all(configs: list[RunConfig], world_size: int, steps: int = STEPS) -> list[Outcome]:
    """Train under each configuration; a few in turn on the same ranks."""
    found = []
    for first in range(0, len(configs), AT_ONCE):
        ranks = collect_from_ranks(_train_in_turn, world_size, configs[first : first + AT_ONCE], steps)
        found += [merge(list(parts)) for parts in zip(*ranks, strict=True)]
    return found


def _train_in_turn(configs: list[RunConfig], steps: int) -> list[RankOutcome]:
    return [train_rank(config, steps) for config in configs]


def merge(ranks: list[RankOutcome]) -> Outcome:
    """Put the parts of all ranks together. Parts that several ranks hold must be the same on all of them."""
    return Outcome(
        losses=ranks[0].losses,
        gradients=assemble(piece for rank in ranks for piece in rank.gradients),
        weights=assemble(piece for rank in ranks for piece in rank.weights),
        grad_norms=ranks[0].grad_norms,
        routing=ranks[0].routing,
    )


def micro_batches(config: RunConfig, groups: Groups, step: int) -> list[Batch]:
    """This rank's micro-batches: fixed random tokens, of which every sample masks a different number."""
    micro, samples = config.training.micro_batch_size, config.training.global_batch_size
    firsts = range(groups.dp_rank * micro, samples, micro * groups.dp_size)
    collate = Collator(
        document_start=DOCUMENT_START if config.data.document_mask else None,
        cp_rank=groups.cp_rank,
        cp_size=groups.cp_size,
    )
    samples_of = _Samples() if config.objective.kind == "lm" else _Packs(config.objective.kind)
    return [collate(samples_of, range(step * samples + first, step * samples + first + micro)) for first in firsts]


class _Samples:
    """Sample n is drawn from seed n; about three of its tokens begin a document."""

    def __len__(self) -> int:
        return 2**31

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(index)
        tokens = torch.randint(VOCABULARY, (SEQUENCE + 1,), generator=generator)
        mask = (torch.rand(SEQUENCE, generator=generator) > (index % 5) / 6).float()
        tokens[torch.rand(SEQUENCE + 1, generator=generator) < 0.1] = DOCUMENT_START
        return {"tokens": tokens[:-1], "labels": tokens[1:], "loss_mask": mask, "position_ids": torch.arange(SEQUENCE)}


class _Packs:
    """Sample n is drawn from seed n: conversations, or pairs, of several lengths, and padding at the end."""

    def __init__(self, kind: str) -> None:
        self._each, self._kto = 1 if kind == "sft" else 2, kind == "kto"

    def __len__(self) -> int:
        return 2**31

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(index)
        tokens, labels = (torch.randint(VOCABULARY, (SEQUENCE,), generator=generator) for _ in range(2))
        rows = 1 + index % 2
        lengths = torch.randint(3, SEQUENCE // (rows * self._each), (rows * self._each,), generator=generator).tolist()
        documents, mask, verdicts, trained = torch.full((SEQUENCE,), len(lengths)), torch.zeros(SEQUENCE), [], []
        at = 0
        for number, length in enumerate(lengths):
            prompt = 1 + number % 2
            documents[at : at + length] = number
            mask[at + prompt : at + length] = 1
            labels[at : at + length - 1] = tokens[at + 1 : at + length]
            verdicts.append((3 if number % 2 else 1 + index % 2) if self._kto else 1 + number % self._each)
            trained.append(length - prompt)
            at += length
        reference = -torch.tensor(trained) * torch.rand(len(lengths), generator=generator, dtype=torch.float64) * 8
        return {
            "tokens": tokens, "labels": labels, "loss_mask": mask, "position_ids": torch.arange(SEQUENCE),
            "documents": documents, "verdicts": torch.tensor(verdicts), "trained": torch.tensor(trained),
            "reference": reference,
        }  # fmt: skip


def train_rank(
    config: RunConfig, steps: int, objective: Callable[[Groups], Objective[Batch]] | None = None
) -> RankOutcome:
    """Inside a rank: build, train with the product's own step, and give this rank's part of the outcome.

    The objective is the configured one, if no other is given.
    """
    groups = initialise(config.parallel, timeout_s=PATIENCE)
    seed_everything(config.run.seed, groups)
    chunks = build_model(Blueprint.of(config), groups, config.run.seed)
    if config.adapter is not None:
        attach_adapters(chunks, config.adapter, groups, config.run.seed)
        move_from_start(chunks)
    weights = pieces_of(chunks)
    chosen = objective(groups) if objective else build_objective(config.objective, groups)
    engine = build_engine(config, chunks, groups, chosen)
    optim = config.optim
    losses: list[float] = []
    norms: list[float | None] = []
    gradients: Pieces = []
    for step in range(steps):
        batches, lr = micro_batches(config, groups, step), lr_at(step, optim, config.training.steps)
        result = train_step(engine, batches, lr=lr, weight_decay=optim.weight_decay)
        if step == 0:
            gradients = gradients_of(chunks, engine.model, groups)
        losses.append(result.loss)
        norms.append(result.grad_norm)
    destroy()
    return RankOutcome(losses, gradients, weights, norms, result.routing)


@torch.no_grad()
def move_from_start(chunks: list[torch.nn.Module]) -> None:
    """Draw B and the lengths of adapters, which are 0 at the start: A would have no gradient."""
    for part in sharded_parts(chunks):
        if (name := part.key.rpartition(MARK)[2]) not in ("b", "magnitude_change"):
            continue
        layer, *places = part.global_offset
        row = places[-2] if name == "b" else places[-1]
        for number, matrix in enumerate(part.data if part.data.dim() == 3 else [part.data]):  # of each expert
            first = f"{part.key}/{layer}/{places[0] + number if part.data.dim() == 3 else 0}"
            width = 1 if matrix.dim() == 1 else matrix.shape[1]
            for start, block in row_blocks(first, range(row, row + len(matrix)), width):
                drawn = 0.1 * block.view(len(block), *matrix.shape[1:])
                matrix[start - row : start - row + len(block)] = drawn


def gradients_of(chunks: list[torch.nn.Module], model: list[torch.nn.Module], groups: Groups) -> Pieces:
    """The reduced (and clipped) gradients that the step left behind, as parts of global tensors."""
    for wrapped in model:
        dense, experts = (wrapped.buffers, groups.pg.dp_cp), (wrapped.expert_parallel_buffers, groups.pg.expt_dp)
        for buffers, replicas in (dense, experts) if wrapped.ddp_config.use_distributed_optimizer else ():
            for bucket in (bucket for buffer in buffers for bucket in buffer.buckets):
                # Each data-parallel rank has reduced its own shard only.
                own = bucket.grad_data.view(replicas.size(), -1)[replicas.rank()].clone()
                torch.distributed.all_gather_into_tensor(bucket.grad_data, own, group=replicas)
    with _gradients_in_place_of_weights(chunks):
        found = pieces_of(chunks)
    return [piece for piece in found if MARK in piece[0]] or found


@contextmanager
def _gradients_in_place_of_weights(chunks: list[torch.nn.Module]) -> Iterator[None]:
    """While inside, the modules' parameters are their fp32 gradients. The parameters themselves are left alone: one
    that has had data of another type put into it is no longer the tensor that the wrapper listens to."""
    places = [
        (module, name, parameter)
        for chunk in chunks
        for module in chunk.modules()
        for name, parameter in module.named_parameters(recurse=False)
        if parameter.requires_grad
    ]
    for module, name, parameter in places:
        stand_in = torch.nn.Parameter(parameter.main_grad, requires_grad=False)
        stand_in.__dict__.update(parameter.__dict__)  # how it is split over ranks
        module._parameters[name] = stand_in
    try:
        yield
    finally:
        for module, name, parameter in places:
            module._parameters[name] = parameter


def relative_difference(one: torch.Tensor, other: torch.Tensor) -> float:
    """Norm of the difference over the norm of the second."""
    return float((one - other).norm() / other.norm())
