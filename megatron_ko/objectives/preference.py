"""Preference optimisation: answers to one prompt, packed side by side, of which one is better."""

import torch
from megatron.core.tensor_parallel import reduce_from_tensor_model_parallel_region
from torch import Tensor

from megatron_ko.config.objective import ObjectiveConfig
from megatron_ko.data.tokens.marks import Mark
from megatron_ko.data.training.batch import Answers, Batch
from megatron_ko.objectives.base import LossOutput, Term, Unit
from megatron_ko.objectives.lm import LanguageModelling
from megatron_ko.objectives.preference_losses import DPO, PairLoss, PairOptions, PairSums, cpo, orpo, simpo
from megatron_ko.parallel.groups import Groups

PAIRS, ANSWERS = "preference", "answers"
# Mean log-probability of the answers of a row that holds no pair: anything that no formula turns into NaN.
_NOTHING = -1.0


class AnswerObjective(LanguageModelling):
    """An objective of the log-probabilities of whole answers.

    Args:
        groups: the ranks.
    """

    def __init__(self, groups: Groups) -> None:
        self._groups = groups

    def answer_sums(self, output: Tensor, batch: Batch) -> Tensor:
        """Log-probability of every answer [b * d], fp32, whole on each rank of a context group.

        The sum over context ranks has an identity as its backward pass: all of them compute the same loss from it.
        """
        answers = answers_of(batch)
        log_probabilities = -output.float() * batch.loss_mask
        sums = log_probabilities.new_zeros(len(answers.verdicts))
        sums = sums.index_add(0, answers.of_token.flatten(), log_probabilities.flatten())
        whole: Tensor = reduce_from_tensor_model_parallel_region(sums, self._groups.pg.cp)
        return whole

    def told(self, value: Tensor, where: Tensor) -> tuple[Tensor, Tensor]:
        """Sum and count of a metric; one rank of a context group tells it."""
        where = where & (self._groups.cp_rank == 0)
        return torch.where(where, value.detach(), 0.0).sum(), where.sum()


class Preference(AnswerObjective):
    """DPO and its kin (``preference_losses``), perhaps with the better answer's own loss.

    ORPO's own loss is over prompt and answer, as in its paper; that of DPO and CPO is over the answer alone.

    Args:
        config: which loss, and its numbers.
        groups: the ranks.

    Attributes:
        weights: loss of pairs by name, and its weight.
    """

    metric_names: tuple[str, ...] = ("accuracy", "margin", "reward_good", "reward_bad", "logp_good", "logp_bad")

    def __init__(self, config: ObjectiveConfig, groups: Groups) -> None:
        super().__init__(groups)
        self._kind, self._refers = config.kind, config.needs_reference
        self._options = PairOptions(config.beta, config.gamma, config.label_smoothing)
        self._losses = losses_of(config)
        own = 1.0 if config.kind == "orpo" else config.sft_weight
        self.terms: tuple[Term, ...] = (Term(PAIRS, Unit.PAIR), *([Term(ANSWERS, Unit.TOKEN, own)] if own else []))

    def count(self, batch: Batch) -> dict[Unit, Tensor]:
        """Pairs; and the tokens of the better answers, or all trained tokens if no term is a mean over them."""
        answers = answers_of(batch)
        own = self._own_mask(batch, answers) if len(self.terms) > 1 else batch.loss_mask
        return {Unit.PAIR: _pairs(answers).sum(), Unit.TOKEN: own.sum().to(torch.int64)}

    def loss(self, output: Tensor, batch: Batch) -> LossOutput:
        """From the losses of tokens [b, s]: the sum over pairs, and that over the tokens of better answers."""
        answers = answers_of(batch)
        assert answers.reference is not None or not self._refers, "computed before the first step"
        pairs = _pairs(answers)
        sums = self.pair_sums(self.answer_sums(output, batch), answers, pairs)
        each = sum(weight * loss(sums, self._options) for loss, weight in self._losses.values())
        assert isinstance(each, Tensor)
        found = {PAIRS: torch.where(pairs, each, 0.0).sum()}
        if len(self.terms) > 1:
            found[ANSWERS] = (output.float() * self._own_mask(batch, answers)).sum()
        return LossOutput(found, self._metrics(sums, pairs))

    def pair_sums(self, sums: Tensor, answers: Answers, pairs: Tensor) -> PairSums:
        """Answers [b * d], of which those of a pair are neighbours, as pairs [b * d / 2]."""
        reference = torch.zeros_like(sums) if answers.reference is None else answers.reference.to(sums.dtype)
        good, bad = (torch.where(pairs, part, _NOTHING) for part in sums.view(-1, 2).unbind(1))
        good_reference, bad_reference = (torch.where(pairs, part, _NOTHING) for part in reference.view(-1, 2).unbind(1))
        good_tokens, bad_tokens = answers.trained.clamp(min=1).to(sums.dtype).view(-1, 2).unbind(1)
        return PairSums(good, bad, good_tokens, bad_tokens, good_reference, bad_reference)

    def _own_mask(self, batch: Batch, answers: Answers) -> Tensor:
        """[b, s] 1 where a token of a better answer counts by itself."""
        good = (answers.verdicts == Mark.GOOD)[answers.of_token]
        return good.to(batch.loss_mask.dtype) if self._kind == "orpo" else good * batch.loss_mask

    def _metrics(self, sums: PairSums, pairs: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        """Means over pairs."""
        beta = self._options.beta
        values = {
            "accuracy": (sums.lead > 0).float(),
            "margin": beta * sums.lead,
            "reward_good": beta * sums.good_gain,
            "reward_bad": beta * sums.bad_gain,
            "logp_good": sums.good / sums.good_tokens,
            "logp_bad": sums.bad / sums.bad_tokens,
        }
        return {name: self.told(value, pairs) for name, value in values.items()}


def losses_of(config: ObjectiveConfig) -> dict[str, tuple[PairLoss, float]]:
    """The losses of a pair that add up to the objective, with their weights."""
    alone: dict[str, PairLoss] = {"orpo": orpo, "simpo": simpo, "cpo": cpo}
    if config.kind in alone:
        return {config.kind: (alone[config.kind], 1.0)}
    return {name: (DPO[name], weight) for name, weight in config.losses.items()}


def answers_of(batch: Batch) -> Answers:
    """The answers of a batch of rows."""
    assert batch.answers is not None, "checked with the data"
    return batch.answers


def _pairs(answers: Answers) -> Tensor:
    """[b * d / 2] whether two neighbouring documents are a pair."""
    good, bad = answers.verdicts.view(-1, 2).unbind(1)
    return (good == Mark.GOOD) & (bad == Mark.BAD)
