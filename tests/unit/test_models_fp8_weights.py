"""Initial values reach 8-bit weights and the tensor that master weights are taken from."""

import pytest
import torch

from megatron_ko.models import fp8_weights
from megatron_ko.models.fp8_weights import initial_values


class Quantised(torch.nn.Parameter):
    """Stands for Transformer Engine's parameter: rounds what it is given, and keeps the value it was built from."""

    def __new__(cls, value: torch.Tensor) -> "Quantised":
        made = super().__new__(cls, torch.zeros_like(value), requires_grad=True)
        made.kept = value
        return made

    def get_high_precision_init_val(self) -> torch.Tensor:
        return self.kept

    def copy_(self, source: torch.Tensor) -> "Quantised":
        self.data = source.to(torch.float8_e4m3fn).to(self.dtype)
        return self


@pytest.fixture
def layer(monkeypatch: pytest.MonkeyPatch) -> torch.nn.Module:
    monkeypatch.setattr(fp8_weights, "is_float8tensor", lambda tensor: isinstance(tensor, Quantised))
    layer = torch.nn.Sequential(torch.nn.Linear(4, 4, bias=False), torch.nn.LayerNorm(4))
    layer[0].weight = Quantised(torch.full((4, 4), torch.nan))
    return layer


def test_values_written_inside_are_quantised_at_the_end(layer: torch.nn.Module) -> None:
    parameter = layer[0].weight
    with initial_values([layer]):
        assert [name for name, _ in layer.named_parameters()] == ["0.weight", "1.weight", "1.bias"]
        with torch.no_grad():
            layer.state_dict()["0.weight"][:2] = 1.03
            layer.state_dict()["0.weight"][2:] = -3.3
            layer[1].weight.fill_(2.0)
    assert layer[0].weight is parameter and parameter.requires_grad
    assert parameter.tolist() == [[1.0] * 4] * 2 + [[-3.25] * 4] * 2
    assert parameter.kept.flatten().unique().tolist() == torch.tensor([-3.3, 1.03]).tolist()
    assert layer[1].weight.tolist() == [2.0] * 4


def test_ordinary_weights_are_left_alone() -> None:
    layer = torch.nn.Linear(3, 3)
    before = layer.weight
    with initial_values([layer]):
        assert layer.weight is before
    assert layer.weight is before
