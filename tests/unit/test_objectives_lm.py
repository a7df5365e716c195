"""The language-modelling objective: sums and counts over exactly the unmasked labels."""

from typing import get_args

import pytest
import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from megatron_ko.config.objective import ObjectiveConfig
from megatron_ko.data.training.batch import Batch
from megatron_ko.metrics.schema import TRAIN
from megatron_ko.objectives import KINDS, LanguageModelling, Unit, build_objective

VOCABULARY = 17


class Bigram(nn.Module):
    """The smallest model with the call of a model chunk: next-token logits from the present token."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(VOCABULARY, VOCABULARY, generator=torch.Generator().manual_seed(3)))

    def forward(self, tokens: Tensor, position_ids: Tensor, attention_mask: None, labels: Tensor) -> Tensor:
        """[b, s] -> losses [b, s]."""
        return functional.cross_entropy(self.table[tokens].flatten(0, 1), labels.flatten(), reduction="none").view_as(
            tokens
        )


def batch(mask: Tensor) -> Batch:
    tokens = torch.randint(0, VOCABULARY, (2, 6), generator=torch.Generator().manual_seed(5))
    return Batch(tokens[:, :-1], tokens[:, 1:], mask, torch.arange(5).repeat(2, 1))


def test_sum_and_count_are_those_of_the_counted_labels() -> None:
    mask = torch.tensor([[1.0, 0, 1, 1, 0], [0, 0, 0, 0, 1]])
    model, objective, sample = Bigram(), LanguageModelling(), batch(mask)
    found = objective.loss(objective.forward(sample, model), sample)
    kept = mask.bool()
    expected = functional.cross_entropy(model.table[sample.tokens[kept]], sample.labels[kept], reduction="sum")
    (loss,) = found.sums.values()
    count = objective.count(sample)[Unit.TOKEN]
    assert count.item() == 4 and count.dtype == torch.int64
    torch.testing.assert_close(loss, expected)
    assert found.metrics == {} and objective.metric_names == ()
    (gradient,) = torch.autograd.grad(loss, model.table)
    (oracle,) = torch.autograd.grad(expected, model.table)
    torch.testing.assert_close(gradient, oracle)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_losses_are_added_in_fp32(dtype: torch.dtype) -> None:
    mask = torch.ones(1, 4096)
    sample = Batch(mask.long(), mask.long(), mask, mask.long())
    output = torch.full((1, 4096), 2.0078125, dtype=torch.float32).to(dtype)
    (loss,) = LanguageModelling().loss(output, sample).sums.values()
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(4096 * output[0, 0].item(), rel=1e-6)


def test_a_fully_masked_batch_counts_nothing() -> None:
    sample, objective = batch(torch.zeros(2, 5)), LanguageModelling()
    (loss,) = objective.loss(objective.forward(sample, Bigram()), sample).sums.values()
    assert loss.item() == 0.0 and objective.count(sample)[Unit.TOKEN].item() == 0


def test_every_kind_of_the_configuration_can_be_built_and_its_metrics_are_declared() -> None:
    assert set(KINDS) == set(get_args(ObjectiveConfig.model_fields["kind"].annotation))
    for kind in KINDS:
        objective = build_objective(ObjectiveConfig(kind=kind), groups=None)
        names = [*(term.name for term in objective.terms), *objective.metric_names]
        assert len(set(names)) == len(names)
        TRAIN.check(objective.metric_names)
