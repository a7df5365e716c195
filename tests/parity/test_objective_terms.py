"""An objective of two terms with a unit each: means over tokens and over pairs, the same at every layout."""

import pytest
import torch
import torch.nn.functional as functional
from harness import collect_from_ranks, merge, micro_batches, relative_difference, tiny_config, train_rank
from megatron.core.tensor_parallel import reduce_from_tensor_model_parallel_region
from torch import Tensor

from megatron_ko.data.training.batch import Batch
from megatron_ko.models.blueprint import Blueprint
from megatron_ko.models.build import build_model
from megatron_ko.objectives import LanguageModelling, LossOutput, Term, Unit
from megatron_ko.parallel.groups import Groups, initialise
from megatron_ko.parallel.seed import seed_everything

BETA, TOKEN_WEIGHT, PAIR_WEIGHT = 0.05, 0.7, 3.0


class TwoTerms(LanguageModelling):
    """Every sequence stands for a pair: its loss bends with the sum over all its tokens, wherever they are computed."""

    metric_names = ("router_z_loss",)  # any declared name: here the mean of the pairs' sums

    def __init__(self, groups: Groups, pairs_first: bool) -> None:
        terms = (Term("nll", Unit.TOKEN, TOKEN_WEIGHT), Term("pairs", Unit.PAIR, PAIR_WEIGHT))
        self.terms = terms[::-1] if pairs_first else terms
        self._groups = groups

    def count(self, batch: Batch) -> dict[Unit, Tensor]:
        return {**super().count(batch), Unit.PAIR: torch.tensor(batch.shape[0], device=batch.tokens.device)}

    def loss(self, output: Tensor, batch: Batch) -> LossOutput:
        nll = super().loss(output, batch).sums["nll"]
        sums = reduce_from_tensor_model_parallel_region((output.float() * batch.loss_mask).sum(1), self._groups.pg.cp)
        pairs = functional.softplus(BETA * sums - 3).sum()
        seen = self.count(batch)[Unit.PAIR]
        told = (sums.sum(), seen) if self._groups.cp_rank == 0 else (sums.sum() * 0, seen * 0)
        return LossOutput({"nll": nll, "pairs": pairs}, {self.metric_names[0]: told})


def tokens_first(groups: Groups) -> TwoTerms:
    return TwoTerms(groups, pairs_first=False)


def pairs_first(groups: Groups) -> TwoTerms:
    return TwoTerms(groups, pairs_first=True)


LAYOUTS = {
    "data 2": (2, {}),
    "context 2": (2, {"context": 2}),
    "tensor 2, sequence": (2, {"tensor": 2, "sequence_parallel": True}),
    "pipeline 2, context 2": (4, {"pipeline": 2, "context": 2}),
}
MOE = {"num_experts": 4, "top_k": 2, "aux_loss_coeff": 0.02}


@pytest.fixture(scope="module")
def alone() -> dict[str, object]:
    """One rank, by the unit that comes first, for a dense model and for one with experts."""
    made = {}
    for moe in (None, MOE):
        for first in (tokens_first, pairs_first):
            config = tiny_config(model={"num_layers": 2, **({"moe": moe} if moe else {})})
            made[first.__name__, bool(moe)] = merge(collect_from_ranks(train_rank, 1, config, 3, first))
    return made


def test_the_unit_that_comes_first_changes_nothing_but_rounding(alone: dict[str, object]) -> None:
    for moe in (False, True):
        one, other = (alone[name, moe] for name in ("tokens_first", "pairs_first"))
        assert one.losses == pytest.approx(other.losses, rel=1e-6)
        for name, gradient in one.gradients.items():
            assert relative_difference(gradient, other.gradients[name]) < 1e-5, name


def test_the_loss_is_the_weighted_sum_of_two_means(alone: dict[str, object]) -> None:
    """By hand: from the losses of single tokens at the initial weights."""
    config = tiny_config(model={"num_layers": 2})
    (expected,) = collect_from_ranks(by_hand, 1, config)
    assert alone["tokens_first", False].losses[0] == pytest.approx(expected, rel=1e-6)


def by_hand(config: object) -> float:
    groups = initialise(config.parallel, timeout_s=60)
    seed_everything(config.run.seed, groups)
    (model,) = build_model(Blueprint.of(config), groups, config.run.seed)
    batches = micro_batches(config, groups, 0)
    with torch.no_grad():
        losses = [LanguageModelling().forward(batch, model).double() * batch.loss_mask for batch in batches]
    tokens = sum(float(batch.loss_mask.sum()) for batch in batches)
    rows = torch.cat([part.sum(1) for part in losses])
    nll = float(rows.sum()) / tokens
    return TOKEN_WEIGHT * nll + PAIR_WEIGHT * float(functional.softplus(BETA * rows - 3).mean())


@pytest.mark.parametrize("first", [tokens_first, pairs_first])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_layout_gives_the_losses_and_gradients_of_one_rank(
    layout: str, first: type[TwoTerms], alone: dict[str, object]
) -> None:
    world, parallel = LAYOUTS[layout]
    config = tiny_config(parallel, model={"num_layers": 2}, training={"micro_batch_size": 1})
    found = merge(collect_from_ranks(train_rank, world, config, 3, first))
    expected = alone[first.__name__, False]
    assert found.losses == pytest.approx(expected.losses, rel=1e-6)
    for name, gradient in expected.gradients.items():
        assert relative_difference(found.gradients[name], gradient) < 2e-6, name


def test_experts_keep_the_weight_of_their_auxiliary_loss(alone: dict[str, object]) -> None:
    """The balancing loss is a mean over micro-batches: dividing by pairs instead of tokens must not change it."""
    model = {"num_layers": 2, "moe": MOE}
    found = merge(collect_from_ranks(train_rank, 2, tiny_config({"expert": 2}, model=model), 3, pairs_first))
    expected = alone["pairs_first", True]
    assert found.losses == pytest.approx(expected.losses, rel=1e-6)
    for name, gradient in expected.gradients.items():
        assert relative_difference(found.gradients[name], gradient) < 1e-5, name
