"""Auxiliary losses of routers have the weight that was asked for: gradients of a step against written-out formulas."""

from typing import Any

import pytest
import torch.nn.functional as F
from harness import (
    Outcome,
    RankOutcome,
    collect_from_ranks,
    merge,
    micro_batches,
    relative_difference,
    tiny_config,
    train_rank,
)
from oracle import Pieces, assemble, pieces_of
from patience import PATIENCE
from torch import Tensor

from megatron_ko.config import RunConfig
from megatron_ko.models.blueprint import Blueprint
from megatron_ko.models.build import build_model
from megatron_ko.models.router import Router, routers_of
from megatron_ko.parallel.groups import destroy, initialise
from megatron_ko.parallel.seed import seed_everything

EXPERTS, TOP_K, AUX, Z = 4, 2, 0.3, 0.05
# The loss over all data-parallel ranks is that of one micro-batch only if each rank has one: 8 samples on two ranks.
CASES: dict[str, tuple[int, dict[str, Any], dict[str, Any], int]] = {
    "batch": (1, {}, {}, 2),
    "sequence": (1, {}, {"aux_loss": "sequence"}, 2),
    "sigmoid": (1, {}, {"score": "sigmoid", "expert_bias": True}, 2),
    "z alone": (1, {}, {"aux_loss": "none"}, 2),
    "fp16": (1, {"dtype": "fp16"}, {}, 2),
    "all ranks": (2, {}, {"aux_loss": "global"}, 4),
    "two replicas": (2, {}, {}, 2),
}


def case_config(name: str, moe: dict[str, Any] | None = None) -> RunConfig:
    _, precision, chosen, micro = CASES[name]
    losses = {"aux_loss_coeff": AUX, "z_loss_coeff": Z} if moe is None else moe
    model = {
        "family": "mixtral",
        "num_layers": 2,
        "hidden_size": 32,
        "ffn_hidden_size": 48,
        "moe": {"num_experts": EXPERTS, "top_k": TOP_K, **chosen, **losses},
    }
    config = tiny_config({}, model=model, precision=precision, training={"micro_batch_size": micro})
    return config.model_copy(update={"optim": config.optim.model_copy(update={"clip_grad": 0.0})})


def written_out(logits: Tensor, batch: int, kind: str, score: str) -> tuple[Tensor, Tensor]:
    """Balancing loss (Fedus et al., 2021, arXiv:2101.03961, eq. 4) and z-loss of one router, from logits [s, b, e]."""
    scores = logits.softmax(-1) if score == "softmax" else F.normalize(logits.sigmoid(), p=1, dim=-1)
    chosen = F.one_hot(scores.topk(TOP_K, dim=-1).indices, EXPERTS).sum(-2).float()
    over = 0 if kind == "sequence" else (0, 1)
    share, chance = chosen.mean(over) / TOP_K, scores.mean(over)  # [e], or [b, e]
    balance = EXPERTS * (share * chance).sum(-1).mean()
    return balance, logits.logsumexp(-1).square().mean()


def listen(router: Router, heard: list[Tensor]) -> None:
    """Note the logits that a router gets."""
    route = router.routing

    def routing(logits: Tensor, padding_mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        heard.append(logits)
        return route(logits, padding_mask)

    router.routing = routing  # type: ignore[method-assign]


def reference_rank(names: list[str]) -> list[tuple[Pieces, list[tuple[float, float]]]]:
    """Gradients of the whole objective in one graph per micro-batch, and both losses of each layer; on one rank."""
    found = []
    for name in names:
        config = case_config(name, moe={"aux_loss": "none", "z_loss_coeff": 0.0})
        config = config.model_copy(update={"precision": config.precision.model_copy(update={"dtype": "fp32"})})
        full = case_config(name)
        assert full.model.moe is not None
        if name == "all ranks":  # both ranks' samples at once
            config = config.model_copy(update={"training": config.training.model_copy(update={"micro_batch_size": 8})})
        groups = initialise(config.parallel, timeout_s=PATIENCE)
        seed_everything(config.run.seed, groups)
        chunks = build_model(Blueprint.of(config), groups, config.run.seed)
        batches = micro_batches(config, groups, 0)
        total = sum(batch.loss_mask.sum() for batch in batches)
        routers = routers_of(chunks)
        seen: list[Tensor] = []
        for router in routers:
            listen(router, seen)
        sums = [[0.0, 0.0] for _ in routers]
        for batch in batches:
            seen.clear()
            losses = chunks[0](batch.tokens, batch.position_ids, None, labels=batch.labels)
            objective = (losses * batch.loss_mask).sum() / total
            for layer, logits in enumerate(seen):
                kind = full.model.moe.aux_loss
                balance, z = written_out(logits, len(batch.tokens), kind, full.model.moe.score)
                weight = 0.0 if kind == "none" else AUX
                objective = objective + (weight * balance + Z * z) / len(batches)
                sums[layer][0] += balance.item() / len(batches)
                sums[layer][1] += z.item() / len(batches)
            objective.backward()
        for parameter in chunks[0].parameters():
            parameter.data = parameter.grad
        found.append((pieces_of(chunks), [(balance, z) for balance, z in sums]))
        destroy()
    return found


def train_all(names: list[str]) -> list[RankOutcome]:
    return [train_rank(case_config(name), 1) for name in names]


@pytest.fixture(scope="module")
def references() -> dict[str, tuple[dict[str, Tensor], list[tuple[float, float]]]]:
    names = list(CASES)
    (found,) = collect_from_ranks(reference_rank, 1, names)
    return {name: (assemble(pieces), losses) for name, (pieces, losses) in zip(names, found, strict=True)}


@pytest.fixture(scope="module")
def trained() -> dict[str, Outcome]:
    outcomes = {}
    for world_size in (1, 2):
        names = [name for name, (size, *_) in CASES.items() if size == world_size]
        ranks = collect_from_ranks(train_all, world_size, names)
        outcomes |= {name: merge([rank[number] for rank in ranks]) for number, name in enumerate(names)}
    return outcomes


@pytest.mark.parametrize("name", CASES)
def test_gradients_are_those_of_the_written_out_objective(
    name: str,
    references: dict[str, tuple[dict[str, Tensor], list[tuple[float, float]]]],
    trained: dict[str, Outcome],
) -> None:
    (expected, losses), ours = references[name], trained[name]
    tolerance = 2e-2 if name == "fp16" else 1e-5
    for key, gradient in expected.items():
        if not key.endswith("expert_bias"):
            assert relative_difference(ours.gradients[key], gradient) < tolerance, key
    kind = case_config(name).model.moe
    assert kind is not None
    for layer, (balance, z) in zip(ours.routing, losses, strict=True):
        assert layer.z_loss == pytest.approx(z, rel=tolerance)
        assert layer.aux_loss == pytest.approx(0.0 if kind.aux_loss == "none" else balance, rel=tolerance)
        assert sum(layer.loads) == pytest.approx(EXPERTS) and layer.dropped == pytest.approx(0.0, abs=1e-12)


def test_auxiliary_losses_are_a_large_part_of_what_is_compared(
    references: dict[str, tuple[dict[str, Tensor], list[tuple[float, float]]]],
) -> None:
    with_balance, without = (references[name][0]["decoder.layers.mlp.router.weight"] for name in ("batch", "z alone"))
    assert relative_difference(with_balance, without) > 0.2
