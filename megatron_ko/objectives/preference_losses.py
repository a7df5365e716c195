"""Losses of a pair of answers, from sums of log-probabilities: pure functions in fp32, one row a pair.

s is the log-probability of an answer under the policy minus that under the reference, summed over its tokens; w the
better answer, l the worse; n the tokens of an answer; m the mean log-probability of a token; sg the sigmoid, lsg its
logarithm. Values and gradients are those of trl 1.16.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

_DISCOPOP_TEMPERATURE = 0.05


@dataclass(frozen=True)
class PairSums:
    """Sums over the answers of pairs, each [p] fp32.

    Attributes:
        good, bad: log-probability under the policy, in nats.
        good_tokens, bad_tokens: trained tokens, at least 1.
        good_reference, bad_reference: log-probability under the reference; zeros for losses without one.
    """

    good: Tensor
    bad: Tensor
    good_tokens: Tensor
    bad_tokens: Tensor
    good_reference: Tensor
    bad_reference: Tensor

    @property
    def good_gain(self) -> Tensor:
        """s of the better answers."""
        return self.good - self.good_reference

    @property
    def bad_gain(self) -> Tensor:
        """s of the worse answers."""
        return self.bad - self.bad_reference

    @property
    def lead(self) -> Tensor:
        """s_w - s_l."""
        return self.good_gain - self.bad_gain

    @property
    def mean_lead(self) -> Tensor:
        """s_w / n_w - s_l / n_l."""
        return self.good_gain / self.good_tokens - self.bad_gain / self.bad_tokens


@dataclass(frozen=True)
class PairOptions:
    """The numbers in the formulas: beta, gamma, and label smoothing e."""

    beta: float
    gamma: float = 0.0
    smoothing: float = 0.0


PairLoss = Callable[[PairSums, PairOptions], Tensor]
_lsg, _sg = functional.logsigmoid, torch.sigmoid


def sigmoid(x: PairSums, o: PairOptions) -> Tensor:
    """DPO, Rafailov et al., 2023 (arXiv:2305.18290); with e: conservative DPO. -(1-e) lsg(b D) - e lsg(-b D)."""
    z = o.beta * x.lead
    return -(1 - o.smoothing) * _lsg(z) - o.smoothing * _lsg(-z)


def robust(x: PairSums, o: PairOptions) -> Tensor:
    """Chowdhury et al., 2024 (arXiv:2403.00409): under flipped labels. (-(1-e) lsg(bD) + e lsg(-bD))/(1-2e)."""
    z = o.beta * x.lead
    return (-(1 - o.smoothing) * _lsg(z) + o.smoothing * _lsg(-z)) / (1 - 2 * o.smoothing)


def sigmoid_norm(x: PairSums, o: PairOptions) -> Tensor:
    """DPO by mean gain of a token, as in Tulu 3 (arXiv:2411.15124). -lsg(b (s_w/n_w - s_l/n_l))."""
    return -_lsg(o.beta * x.mean_lead)


def hinge(x: PairSums, o: PairOptions) -> Tensor:
    """SLiC, Zhao et al., 2023 (arXiv:2305.10425). relu(1 - b D)."""
    return functional.relu(1 - o.beta * x.lead)


def ipo(x: PairSums, o: PairOptions) -> Tensor:
    """Azar et al., 2023 (arXiv:2310.12036). (s_w/n_w - s_l/n_l - 1/(2b))^2."""
    return (x.mean_lead - 1 / (2 * o.beta)) ** 2


def exo_pair(x: PairSums, o: PairOptions) -> Tensor:
    """Ji et al., 2024 (arXiv:2402.00856). sg(bD)(lsg(bD) - ln(1-e)) + sg(-bD)(lsg(-bD) - ln e), e never 0."""
    e, z = o.smoothing or 1e-3, o.beta * x.lead
    return _sg(z) * (_lsg(z) - math.log(1 - e)) + _sg(-z) * (_lsg(-z) - math.log(e))


def nca_pair(x: PairSums, o: PairOptions) -> Tensor:
    """Chen et al., 2024 (arXiv:2402.05369). -lsg(b s_w) - (lsg(-b s_w) + lsg(-b s_l))/2."""
    good, bad = o.beta * x.good_gain, o.beta * x.bad_gain
    return -_lsg(good) - 0.5 * _lsg(-good) - 0.5 * _lsg(-bad)


def bco_pair(x: PairSums, o: PairOptions) -> Tensor:
    """Jung et al., 2024 (arXiv:2404.04656), without a running shift. -lsg(b s_w) - lsg(-b s_l)."""
    return -_lsg(o.beta * x.good_gain) - _lsg(-o.beta * x.bad_gain)


def sppo_hard(x: PairSums, o: PairOptions) -> Tensor:
    """Wu et al., 2024 (arXiv:2405.00675). (s_w - 1/(2b))^2 + (s_l + 1/(2b))^2."""
    return (x.good_gain - 0.5 / o.beta) ** 2 + (x.bad_gain + 0.5 / o.beta) ** 2


def apo_zero(x: PairSums, o: PairOptions) -> Tensor:
    """D'Oosterlinck et al., 2024 (arXiv:2408.06266): raise the better, lower the worse. 1 - sg(b s_w) + sg(b s_l)."""
    return 1 - _sg(o.beta * x.good_gain) + _sg(o.beta * x.bad_gain)


def apo_down(x: PairSums, o: PairOptions) -> Tensor:
    """The same paper: lower both, the worse more. sg(b s_w) + 1 - sg(b D)."""
    return _sg(o.beta * x.good_gain) + 1 - _sg(o.beta * x.lead)


def discopop(x: PairSums, o: PairOptions) -> Tensor:
    """Lu et al., 2024 (arXiv:2406.08414). z = b D, k = sg(z/0.05): -lsg(z)(1-k) + exp(-z) k."""
    z = o.beta * x.lead
    k = z / _DISCOPOP_TEMPERATURE
    return -_lsg(z) * _sg(-k) + torch.exp(_lsg(k) - z)  # exp(-z) alone overflows


def orpo(x: PairSums, o: PairOptions) -> Tensor:
    """Hong et al., 2024 (arXiv:2403.07691), the part beside the answer's own loss. -b lsg(log odds ratio)."""
    good, bad = x.good / x.good_tokens, x.bad / x.bad_tokens
    return -o.beta * _lsg((good - bad) - (log1mexp(good) - log1mexp(bad)))


def simpo(x: PairSums, o: PairOptions) -> Tensor:
    """Meng et al., 2024 (arXiv:2405.14734). -lsg(b (m_w - m_l) - g)."""
    return -_lsg(o.beta * (x.good / x.good_tokens - x.bad / x.bad_tokens) - o.gamma)


def cpo(x: PairSums, o: PairOptions) -> Tensor:
    """Xu et al., 2024 (arXiv:2401.08417), beside the answer's own loss. -lsg(b (log p_w - log p_l))."""
    return -_lsg(o.beta * (x.good - x.bad))


def log1mexp(x: Tensor) -> Tensor:
    """log(1 - exp(x)) for x < 0."""
    return torch.log(-torch.expm1(x))


DPO: dict[str, PairLoss] = {
    loss.__name__: loss
    for loss in (
        sigmoid, ipo, hinge, robust, sigmoid_norm, exo_pair, nca_pair, bco_pair, sppo_hard, apo_zero, apo_down, discopop
    )
}  # fmt: skip


def loss_at_the_reference(name: str, o: PairOptions) -> float:
    """What a loss of ``DPO`` is where policy and reference are the same model."""
    zero, one = torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    return float(DPO[name](PairSums(zero, zero, one, one, zero, zero), o))
