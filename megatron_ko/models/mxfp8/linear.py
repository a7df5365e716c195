"""Linear layers whose three matrix products use operands rounded as on MXFP8 hardware, but full-precision arithmetic.

An operand is quantised along the dimension that its product sums over: input and weight along the input width in the
forward pass, gradient and weight along the output width for the gradient of the input, gradient and input along the
tokens for the gradient of the weight. A weight is therefore quantised twice, in different ways. Dequantised operands
are exact in their own type, so a product has no error beyond that of an ordinary product with fp32 sums.
"""

import functools
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.tensor_parallel import ColumnParallelLinear, RowParallelLinear
from megatron.core.tensor_parallel.mappings import (
    copy_to_tensor_model_parallel_region,
    gather_from_sequence_parallel_region,
)

from megatron_ko.models.mxfp8.numbers import E4M3, ElementFormat, ScaleRounding, round_trip


@dataclass(frozen=True)
class Mxfp8Recipe:
    """How a linear layer is quantised; weights and activations are E4M3.

    Attributes:
        gradient: format of the gradients of outputs.
        scale_rounding: see ``quantise``.
    """

    gradient: ElementFormat
    scale_rounding: ScaleRounding

    def values(self, tensor: torch.Tensor, dim: int) -> torch.Tensor:
        """A weight or an activation, quantised along a dimension and dequantised."""
        return round_trip(tensor, E4M3, dim, self.scale_rounding)

    def gradients(self, tensor: torch.Tensor, dim: int) -> torch.Tensor:
        """The same for the gradient of an output."""
        return round_trip(tensor, self.gradient, dim, self.scale_rounding)


class _Linear(torch.autograd.Function):
    """[..., k] times [n, k] -> [..., n]."""

    @staticmethod
    def forward(ctx: Any, inputs: torch.Tensor, weight: torch.Tensor, recipe: Mxfp8Recipe) -> torch.Tensor:
        ctx.save_for_backward(inputs, weight)
        ctx.recipe = recipe
        return F.linear(recipe.values(inputs, -1), recipe.values(weight, 1))

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None, None]:
        inputs, weight = ctx.saved_tensors
        recipe: Mxfp8Recipe = ctx.recipe
        rows = gradient.reshape(-1, gradient.shape[-1])  # [t, n]
        to_input = to_weight = None
        if ctx.needs_input_grad[0]:
            to_input = (recipe.gradients(rows, 1) @ recipe.values(weight, 0)).view(inputs.shape)
        if ctx.needs_input_grad[1]:
            tokens = inputs.reshape(-1, inputs.shape[-1])  # [t, k]
            to_weight = recipe.gradients(rows, 0).t() @ recipe.values(tokens, 0)
        return to_input, to_weight, None


def mxfp8_linear(inputs: torch.Tensor, weight: torch.Tensor, recipe: Mxfp8Recipe) -> torch.Tensor:
    """``inputs`` [..., k] times the transpose of ``weight`` [n, k]; blocks over tokens follow memory order."""
    output: torch.Tensor = _Linear.apply(inputs, weight, recipe)
    return output


@dataclass(frozen=True)
class Linears:
    """Classes of the two kinds of parallel linear layer."""

    column: type[ColumnParallelLinear]
    row: type[RowParallelLinear]


@functools.cache
def mxfp8_linears(recipe: Mxfp8Recipe) -> Linears:
    """megatron-core's parallel linear layers with emulated products; parameters and names are the same.

    They override only the method that multiplies, after the input has been gathered.
    """

    def multiply(
        _: torch.nn.Module,
        input: torch.Tensor,
        weight: torch.Tensor,
        *,
        bias: None,
        allreduce_dgrad: bool,
        sequence_parallel: bool,
        tp_group: Any,
        **__: object,
    ) -> torch.Tensor:
        assert bias is None, "these models have no biases"
        if sequence_parallel:
            input = gather_from_sequence_parallel_region(input, group=tp_group)
        elif allreduce_dgrad:
            input = copy_to_tensor_model_parallel_region(input, group=tp_group)
        return mxfp8_linear(input, weight, recipe)

    def variant(base: type) -> type:
        return type(f"Mxfp8{base.__name__}", (base,), {"_forward_impl": multiply})

    return Linears(column=variant(ColumnParallelLinear), row=variant(RowParallelLinear))
