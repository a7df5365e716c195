"""KTO: answers that are good or bad each by itself (Ethayarajh et al., 2024, arXiv:2402.01306)."""

from collections.abc import Mapping

import torch
from torch import Tensor

from megatron_ko.config.objective import ObjectiveConfig
from megatron_ko.data.tokens.marks import Mark
from megatron_ko.data.training.batch import Answers, Batch
from megatron_ko.objectives.base import LossOutput, Term, Unit
from megatron_ko.objectives.preference import AnswerObjective, answers_of
from megatron_ko.parallel.groups import Groups

KTO = "kto"


class Kto(AnswerObjective):
    """A good answer should gain more than answers to other prompts do, a bad one less.

    With s = log policy - log reference of an answer: d (1 - sg(b (s - z))) for a good answer, u (1 - sg(b (z - s))) for
    a bad one. z = max(0, mean s of mismatched answers) of the whole global batch, without a gradient: it is measured by
    a forward pass over the batch before its loss, so that it does not depend on the layout.

    Args:
        config: beta, and the weights d and u.
        groups: the ranks.
    """

    terms: tuple[Term, ...] = (Term(KTO, Unit.PAIR),)
    metric_names: tuple[str, ...] = ("reward_good", "reward_bad", "baseline")

    def __init__(self, config: ObjectiveConfig, groups: Groups) -> None:
        super().__init__(groups)
        self._beta, self._good_weight, self._bad_weight = config.beta, config.good_weight, config.bad_weight
        self._baseline = 0.0

    def observer(self) -> "MismatchedGain":
        """What the model makes of answers to other prompts."""
        return MismatchedGain(self._groups)

    def observe(self, metrics: Mapping[str, float]) -> None:
        """Take the mean gain of the mismatched answers."""
        self._baseline = max(0.0, metrics[MismatchedGain.NAME])

    def count(self, batch: Batch) -> dict[Unit, Tensor]:
        """Answers with a verdict, and their tokens."""
        answers = answers_of(batch)
        trained = _has_verdict(answers)[answers.of_token] * batch.loss_mask
        return {Unit.PAIR: _has_verdict(answers).sum(), Unit.TOKEN: trained.sum().to(torch.int64)}

    def loss(self, output: Tensor, batch: Batch) -> LossOutput:
        """From the losses of tokens [b, s]: the sum over answers."""
        answers = answers_of(batch)
        gain = _gains(self.answer_sums(output, batch), answers)
        good, bad = answers.verdicts == Mark.GOOD, answers.verdicts == Mark.BAD
        lead = self._beta * (gain - self._baseline)
        losses = torch.where(good, self._good_weight * torch.sigmoid(-lead), self._bad_weight * torch.sigmoid(lead))
        found = torch.where(_has_verdict(answers), losses, 0.0).sum()
        rewards = self._beta * gain
        told = {"reward_good": self.told(rewards, good), "reward_bad": self.told(rewards, bad)}
        told["baseline"] = self.told(torch.full_like(rewards, self._baseline), good | bad)
        return LossOutput({KTO: found}, told)


class MismatchedGain(AnswerObjective):
    """Measures the mean of s over mismatched answers."""

    NAME = "mismatched_gain"
    terms: tuple[Term, ...] = (Term(KTO, Unit.PAIR),)
    metric_names: tuple[str, ...] = (NAME,)

    def count(self, batch: Batch) -> dict[Unit, Tensor]:
        """Answers with a verdict: nothing is divided by it."""
        count = _has_verdict(answers_of(batch)).sum()
        return {Unit.PAIR: count, Unit.TOKEN: count}

    def loss(self, output: Tensor, batch: Batch) -> LossOutput:
        """No loss, and the sum of the gains."""
        answers = answers_of(batch)
        gain = _gains(self.answer_sums(output, batch), answers)
        told = self.told(gain, answers.verdicts == Mark.MISMATCHED)
        return LossOutput({KTO: output.sum() * 0}, {self.NAME: told})


def _gains(sums: Tensor, answers: Answers) -> Tensor:
    """s of every answer [b * d]."""
    assert answers.reference is not None, "computed before the first step"
    return sums - answers.reference.to(sums.dtype)


def _has_verdict(answers: Answers) -> Tensor:
    return (answers.verdicts == Mark.GOOD) | (answers.verdicts == Mark.BAD)
