"""Packed conversations and preferences: every objective gives the losses and gradients of one rank at every layout."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from harness import VOCABULARY, Outcome, collect_from_ranks, micro_batches, relative_difference, tiny_config, train_all
from torch.nn import functional

from megatron_ko.config import RunConfig
from megatron_ko.models.blueprint import Blueprint
from megatron_ko.models.build import build_model
from megatron_ko.objectives import LanguageModelling, build_objective
from megatron_ko.parallel.groups import initialise
from megatron_ko.parallel.seed import seed_everything
from megatron_ko.train.engine import build_engine
from megatron_ko.train.step import train_step

STEPS = 3
OBJECTIVES: dict[str, dict[str, Any]] = {
    "sft": {"kind": "sft", "neftune_alpha": 5.0},
    "dpo": {"kind": "dpo", "losses": {"sigmoid": 0.8, "bco_pair": 0.2}, "sft_weight": 0.5},
    "orpo": {"kind": "orpo", "beta": 0.25},
    "simpo": {"kind": "simpo", "beta": 2.0},
    "kto": {"kind": "kto", "beta": 0.3, "bad_weight": 1.5},
}
MOE = {"num_experts": 4, "top_k": 2, "aux_loss_coeff": 0.02, "z_loss_coeff": 1e-3}
# layout -> ranks, axes, whether the model has experts
QUICK: dict[str, tuple[int, dict[str, Any], bool]] = {
    "tensor 2, sequence": (2, {"tensor": 2, "sequence_parallel": True}, False),
    "context 2": (2, {"context": 2}, False),
    "pipeline 4": (4, {"pipeline": 4}, False),
    "expert 2": (2, {"expert": 2}, True),
}
SLOW: dict[str, tuple[int, dict[str, Any], bool]] = {
    "data 2": (2, {}, False),
    "tensor 2": (2, {"tensor": 2}, False),
    "pipeline 2": (2, {"pipeline": 2}, False),
    "pipeline 2, interleaved": (2, {"pipeline": 2, "virtual_pipeline": 2}, False),
    "tensor 2, pipeline 2": (4, {"tensor": 2, "pipeline": 2}, False),
    "tensor 2, context 2": (4, {"tensor": 2, "context": 2}, False),
    "data 2, context 2": (4, {"context": 2}, False),
    "expert 2, tensor 2": (4, {"expert": 2, "tensor": 2, "sequence_parallel": True}, True),
    "expert 2, pipeline 2": (4, {"expert": 2, "pipeline": 2}, True),
    "expert 2, context 2": (4, {"expert": 2, "context": 2}, True),
}


def configurations(parallel: dict[str, Any], experts: bool) -> list[RunConfig]:
    model = {"moe": MOE} if experts else {}
    training = {"micro_batch_size": 1}
    return [
        tiny_config(parallel, model=model, training=training, objective=objective) for objective in OBJECTIVES.values()
    ]


@pytest.fixture(scope="module")
def alone() -> dict[bool, list[Outcome]]:
    """One rank, by whether there are experts; in the order of ``OBJECTIVES``."""
    return {experts: train_all(configurations({}, experts), 1, STEPS) for experts in (False, True)}


def compare(layout: tuple[int, dict[str, Any], bool], alone: dict[bool, list[Outcome]]) -> None:
    world, parallel, experts = layout
    found = train_all(configurations(parallel, experts), world, STEPS)
    for name, one, other in zip(OBJECTIVES, alone[experts], found, strict=True):
        assert other.losses == pytest.approx(one.losses, rel=1e-5), name
        for parameter, gradient in one.gradients.items():
            assert relative_difference(other.gradients[parameter], gradient) < 1e-5, (name, parameter)


@pytest.mark.parametrize("layout", QUICK)
def test_a_layout_gives_the_losses_and_gradients_of_one_rank(layout: str, alone: dict[bool, list[Outcome]]) -> None:
    compare(QUICK[layout], alone)


@pytest.mark.slow
@pytest.mark.parametrize("layout", SLOW)
def test_every_other_layout_does_so_too(layout: str, alone: dict[bool, list[Outcome]]) -> None:
    compare(SLOW[layout], alone)


def test_the_loss_is_that_of_answers_one_by_one(alone: dict[bool, list[Outcome]]) -> None:
    """By hand: each document through the model alone, at the initial weights."""
    (expected,) = collect_from_ranks(by_hand, 1, configurations({}, False)[1])
    assert alone[False][1].losses[0] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("experts", [False, True], ids=["dense", "experts"])
def test_what_padding_holds_changes_nothing(experts: bool) -> None:
    (found,) = collect_from_ranks(with_other_padding, 1, configurations({}, experts)[2])
    plain, other = found
    assert other["loss"] == pytest.approx(plain["loss"], rel=1e-7 if experts else 0)
    assert other["norm"] == pytest.approx(plain["norm"], rel=1e-6 if experts else 0)
    assert other["balance"] == pytest.approx(plain["balance"], rel=1e-6)


def with_other_padding(config: RunConfig) -> list[dict[str, Any]]:
    """Loss, gradient norm and balancing losses of a step, and of the same step with other tokens in the padding."""
    groups = initialise(config.parallel, timeout_s=60)
    seed_everything(config.run.seed, groups)
    chunks = build_model(Blueprint.of(config), groups, config.run.seed)
    engine = build_engine(config, chunks, groups, build_objective(config.objective, groups))
    batches, results = micro_batches(config, groups, 0), []
    for shift in (0, 7):
        changed = []
        for batch in batches:
            padding = batch.padding()
            assert padding is not None and padding.any()
            tokens = torch.where(padding, (batch.tokens + shift) % VOCABULARY, batch.tokens)
            labels = torch.where(padding, (batch.labels + shift) % VOCABULARY, batch.labels)
            changed.append(replace(batch, tokens=tokens, labels=labels))
        result = train_step(engine, changed, lr=0.0, weight_decay=0.0)
        balance = [(layer.aux_loss, layer.z_loss, *layer.loads) for layer in result.routing]
        results.append({"loss": result.loss, "norm": result.grad_norm, "balance": sum(balance, ())})
    return results


def by_hand(config: RunConfig) -> float:
    """DPO's mixed loss, from log-probabilities of documents that share a batch with nothing."""
    groups = initialise(config.parallel, timeout_s=60)
    seed_everything(config.run.seed, groups)
    (model,) = build_model(Blueprint.of(config), groups, config.run.seed)
    pair_losses, nll, tokens = [], 0.0, 0
    for batch in micro_batches(config, groups, 0):
        assert batch.answers is not None and batch.documents is not None
        answers = batch.answers
        sums = []
        for number in range(len(answers.verdicts)):
            place = (answers.of_token == number)[0].nonzero().flatten()
            if not answers.verdicts[number]:
                sums.append(0.0)
                continue
            alone = replace(
                batch,
                tokens=batch.tokens[:, place],
                labels=batch.labels[:, place],
                loss_mask=batch.loss_mask[:, place],
                position_ids=torch.arange(len(place))[None],
                documents=None,
                answers=None,
            )
            with torch.no_grad():
                losses = LanguageModelling().forward(alone, model).double() * alone.loss_mask
            sums.append(-float(losses.sum()))
            if answers.verdicts[number] == 1:
                nll, tokens = nll + float(losses.sum()), tokens + int(alone.loss_mask.sum())
        gains = torch.tensor(sums) - answers.reference
        for good, bad, verdict in zip(gains[0::2], gains[1::2], answers.verdicts[0::2], strict=True):
            if verdict:
                lead, beta = good - bad, 0.1
                sigmoid = -functional.logsigmoid(beta * lead)
                bco = -functional.logsigmoid(beta * good) - functional.logsigmoid(-beta * bad)
                pair_losses.append(float(0.8 * sigmoid + 0.2 * bco))
    return sum(pair_losses) / len(pair_losses) + 0.5 * nll / tokens
