"""Every loss of a pair against trl: values and gradients, and its constant where policy and reference are equal."""

import math
from collections import defaultdict
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from trl import DPOTrainer, KTOTrainer
from trl.experimental.cpo.cpo_trainer import CPOTrainer
from trl.experimental.orpo.orpo_trainer import ORPOTrainer

from megatron_ko.config.objective import ObjectiveConfig
from megatron_ko.data.training.batch import Answers, Batch
from megatron_ko.objectives import Unit
from megatron_ko.objectives.kto import Kto
from megatron_ko.objectives.preference_losses import (
    DPO,
    PairLoss,
    PairOptions,
    PairSums,
    cpo,
    loss_at_the_reference,
    orpo,
    simpo,
)

PAIRS, LONGEST = 6, 9


def token_log_probabilities(seed: int) -> tuple[Tensor, Tensor]:
    """Log-probabilities [2 p, t] of tokens, better answers first, and which of them there are."""
    random = torch.Generator().manual_seed(seed)
    values = -torch.rand(2 * PAIRS, LONGEST, generator=random) * 3
    lengths = torch.randint(2, LONGEST + 1, (2 * PAIRS, 1), generator=random)
    return values, (torch.arange(LONGEST) < lengths).float()


def sums_of(policy: Tensor, mask: Tensor, reference: Tensor) -> PairSums:
    good, bad = (policy * mask).sum(1).chunk(2)
    good_tokens, bad_tokens = mask.sum(1).chunk(2)
    good_reference, bad_reference = (reference * mask).sum(1).chunk(2)
    return PairSums(good, bad, good_tokens, bad_tokens, good_reference, bad_reference)


class _Told(torch.nn.Module):
    """Returns the log-probabilities [2 p, t] that it was given, as a model does."""

    is_gradient_checkpointing = False

    def __init__(self, values: Tensor) -> None:
        super().__init__()
        self._values = values

    def forward(self, **_: object) -> Any:
        nothing = torch.zeros_like(self._values)
        return SimpleNamespace(log_probs=self._values, entropy=nothing, mean_logits=nothing, is_top1=nothing.bool())


def theirs(name: str, beta: float, smoothing: float, policy: Tensor, mask: Tensor, reference: Tensor) -> Tensor:
    """trl's DPO loss from the log-probabilities of tokens, by a model that only returns them."""
    width = 1 + LONGEST
    zeros = torch.zeros(2 * PAIRS, 1)

    identity = lambda value: value  # noqa: E731
    trainer = SimpleNamespace(
        model=_Told(policy * mask), ref_model=_Told(reference * mask), aux_loss_enabled=False, ld_alpha=None,
        precompute_ref_logps=False, f_divergence_type="reverse_kl", f_alpha_divergence_coef=0.5,
        loss_types=[name], loss_weights=[1.0], beta=beta, label_smoothing=smoothing, use_weighting=False,
        _metrics={"train": defaultdict(list), "eval": defaultdict(list)}, _total_train_tokens=0, _tp_size=1,
        accelerator=SimpleNamespace(
            device="cpu", gather=identity, gather_for_metrics=identity, unwrap_model=lambda model, **_: model
        ),
        args=SimpleNamespace(gradient_checkpointing_kwargs=None, discopop_tau=0.05),
    )  # fmt: skip
    whole = torch.cat([zeros + 1, mask], 1)
    batch = {
        "input_ids": torch.zeros(2 * PAIRS, width, dtype=torch.long),
        "attention_mask": whole.long(),
        "completion_mask": torch.cat([zeros, mask], 1).long(),
    }
    loss: Tensor = DPOTrainer._compute_loss(trainer, trainer.model, batch, False)
    return loss


@pytest.mark.parametrize("name", DPO)
@pytest.mark.parametrize(("beta", "smoothing"), [(0.1, 0.0), (0.5, 0.1)])
def test_dpo_losses_are_those_of_trl(name: str, beta: float, smoothing: float) -> None:
    smoothing = {"exo_pair": smoothing or 0.01, "robust": smoothing}.get(name, 0.0)
    values, mask = token_log_probabilities(1)
    reference = values + 0.3 * torch.randn(values.shape, generator=torch.Generator().manual_seed(2))
    ours_in, theirs_in = (values.clone().requires_grad_() for _ in range(2))
    ours = DPO[name](sums_of(ours_in, mask, reference), PairOptions(beta, smoothing=smoothing)).mean()
    expected = theirs(name, beta, smoothing, theirs_in, mask, reference)
    assert float(ours) == pytest.approx(float(expected), abs=1e-5)
    (gradient,), (wanted,) = torch.autograd.grad(ours, ours_in), torch.autograd.grad(expected, theirs_in)
    assert torch.linalg.vector_norm(gradient - wanted) <= 1e-4 * torch.linalg.vector_norm(wanted)


def _orpo(beta: float, good: Tensor, bad: Tensor) -> Tensor:
    namespace = SimpleNamespace(beta=beta, accelerator=SimpleNamespace(device="cpu"))
    return -ORPOTrainer.odds_ratio_loss(namespace, good, bad)[0]


def _cpo(kind: str, gamma: float) -> Callable[[float, Tensor, Tensor], Tensor]:
    def loss(beta: float, good: Tensor, bad: Tensor) -> Tensor:
        namespace = SimpleNamespace(
            beta=beta, accelerator=SimpleNamespace(device="cpu"), alpha=0.0, loss_type=kind, simpo_gamma=gamma,
            label_smoothing=0.0,
        )  # fmt: skip
        result: Tensor = CPOTrainer.cpo_loss(namespace, good, bad)[0]
        return result

    return loss


@pytest.mark.parametrize(
    ("ours", "oracle", "by_token"),
    [(orpo, _orpo, True), (simpo, _cpo("simpo", 0.7), True), (cpo, _cpo("sigmoid", 0.0), False)],
    ids=["orpo", "simpo", "cpo"],
)
def test_losses_without_a_reference_are_those_of_trl(
    ours: PairLoss, oracle: Callable[[float, Tensor, Tensor], Tensor], by_token: bool
) -> None:
    values, mask = token_log_probabilities(3)
    ours_in, theirs_in = (values.clone().requires_grad_() for _ in range(2))
    loss = ours(sums_of(ours_in, mask, values), PairOptions(0.25, gamma=0.7)).mean()
    sums = (theirs_in * mask).sum(1)
    good, bad = (sums / mask.sum(1) if by_token else sums).chunk(2)
    expected = oracle(0.25, good, bad).mean()
    assert float(loss) == pytest.approx(float(expected), abs=1e-5)
    (gradient,), (wanted,) = torch.autograd.grad(loss, ours_in), torch.autograd.grad(expected, theirs_in)
    assert torch.linalg.vector_norm(gradient - wanted) <= 1e-4 * torch.linalg.vector_norm(wanted)


@pytest.mark.parametrize("shift", [0.4, -0.4], ids=["baseline", "baseline at 0"])
def test_kto_is_that_of_trl(shift: float) -> None:
    """The same answers and mismatched answers, in trl as rows and here as documents of one sample."""
    answers, mask = token_log_probabilities(5)
    others, other_mask = token_log_probabilities(6)
    number, good = len(answers), torch.arange(len(answers)) % 3 > 0
    reference, other_reference = answers + 0.2, others - shift
    ours_in, theirs_in = (answers.clone().requires_grad_() for _ in range(2))

    objective = Kto(ObjectiveConfig(kind="kto", beta=0.3, good_weight=1.2, bad_weight=0.7), _alone())
    tokens = torch.stack([ours_in, others], 1).reshape(1, -1)  # each answer before its mismatched one
    marked = torch.stack([mask, other_mask], 1).reshape(1, -1)
    verdicts = torch.stack([torch.where(good, 1, 2), torch.full((number,), 3)], 1).flatten()
    sums = torch.stack([(reference * mask).sum(1), (other_reference * other_mask).sum(1)], 1).flatten().double()
    of_token = torch.arange(2 * number).repeat_interleave(LONGEST)[None]
    nothing = torch.zeros_like(of_token)
    batch = Batch(nothing, nothing, marked, nothing, of_token, (), Answers(of_token, verdicts, verdicts, sums))
    observer = objective.observer()
    total, count = observer.loss(-tokens, batch).metrics[observer.NAME]
    objective.observe({observer.NAME: float(total / count)})
    ours = objective.loss(-tokens, batch).sums["kto"] / objective.count(batch)[Unit.PAIR]

    identity = lambda value: value  # noqa: E731
    whole = torch.cat([torch.ones(number, 1), mask], 1)
    trainer = SimpleNamespace(
        model=_Told(theirs_in * mask), aux_loss_enabled=False, precompute_ref_logps=True, calculate_KL=True,
        loss_type="kto", beta=0.3, desirable_weight=1.2, undesirable_weight=0.7, _total_train_tokens=0, _tp_size=1,
        _metrics={"train": defaultdict(list), "eval": defaultdict(list)},
        accelerator=SimpleNamespace(device="cpu", gather=identity, gather_for_metrics=identity),
        _compute_kl_logps=lambda model, batch: (others * other_mask).sum(1),
    )  # fmt: skip
    given = {
        "input_ids": torch.zeros(number, LONGEST + 1, dtype=torch.long), "attention_mask": whole.long(),
        "completion_mask": torch.cat([torch.zeros(number, 1), mask], 1).long(), "label": good,
        "ref_logps": (reference * mask).sum(1), "ref_KL_logps": (other_reference * other_mask).sum(1),
    }  # fmt: skip
    expected = KTOTrainer._compute_loss(trainer, trainer.model, given, False)
    assert float(ours) == pytest.approx(float(expected), abs=1e-5)
    (gradient,), (wanted,) = torch.autograd.grad(ours, ours_in), torch.autograd.grad(expected, theirs_in)
    torch.distributed.destroy_process_group()
    assert torch.linalg.vector_norm(gradient - wanted) <= 1e-4 * torch.linalg.vector_norm(wanted)


def _alone() -> Any:
    """Groups of one rank."""
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    return SimpleNamespace(cp_rank=0, pg=SimpleNamespace(cp=torch.distributed.group.WORLD))


CONSTANTS = {
    "sigmoid": math.log(2), "robust": math.log(2), "sigmoid_norm": math.log(2), "hinge": 1.0, "ipo": 1 / (4 * 0.04),
    "exo_pair": -math.log(2) - (math.log(0.1) + math.log(0.9)) / 2, "nca_pair": 2 * math.log(2),
    "bco_pair": 2 * math.log(2), "sppo_hard": 1 / (2 * 0.04), "apo_zero": 1.0, "apo_down": 1.0,
    "discopop": (math.log(2) + 1) / 2,
}  # fmt: skip


@pytest.mark.parametrize("name", DPO)
def test_where_policy_and_reference_are_equal_a_loss_is_its_constant(name: str) -> None:
    found = loss_at_the_reference(name, PairOptions(0.2, smoothing=0.1))
    assert found == pytest.approx(CONSTANTS[name], rel=1e-12)


@pytest.mark.parametrize("name", [*DPO, "orpo", "simpo", "cpo"])
def test_no_loss_is_lost_where_answers_are_far_apart(name: str) -> None:
    loss = {"orpo": orpo, "simpo": simpo, "cpo": cpo, **DPO}[name]
    good = torch.tensor([-1e4, -1.0, -3e3], requires_grad=True)
    bad, count = torch.tensor([-1.0, -1e4, -3e3]), torch.tensor([100.0, 100.0, 2.0])
    value = loss(PairSums(good, bad, count, count, good.detach() / 2, bad / 2), PairOptions(0.5)).sum()
    (gradient,) = torch.autograd.grad(value, good)
    assert torch.isfinite(value) and torch.isfinite(gradient).all()
