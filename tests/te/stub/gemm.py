"""Matrix products, of one pair of matrices and of many."""

from collections.abc import Sequence
from typing import Any

import torch

from stub.casts import quantize
from stub.extension import KernelMissing, kernel
from stub.formats import TORCH, is_plain, wide


def product(left: Any, left_transposed: bool, right: Any, right_transposed: bool) -> torch.Tensor:
    """B times A as cuBLAS is asked for it, summed in fp32: [m, k] and [n, k] give [m, n] for a transposed A."""
    a, b = wide(left, columnwise=not left_transposed), wide(right, columnwise=right_transposed)
    return (b.t() if right_transposed else b) @ (a.t() if left_transposed else a)


@kernel
def generic_gemm(
    A: Any, transa: bool, B: Any, transb: bool, out: torch.Tensor | None, quantizer: Any, out_dtype: Any,
    bias: torch.Tensor | None, bias_dtype: Any, gelu: bool, gelu_in: Any, grad: bool, workspace: Any, size: int,
    accumulate: bool, split: bool, **others: Any,
) -> tuple[Any, None, None, None]:  # fmt: skip
    """A product into ``out``, or into a new tensor with the leading dimensions of B."""
    if others["comm_overlap"] is not None or gelu or (bias is not None and bias.numel()):
        raise KernelMissing("generic_gemm with communication, GELU or bias")
    result = product(A, transa, B, transb)
    if out is not None:
        _write(result, out, accumulate)
        return quantize(out, quantizer), None, None, None
    dtype = TORCH[int(out_dtype)] if out_dtype is not None else torch.bfloat16
    shaped = result if transb else result.reshape(*B.size()[:-1], result.shape[-1])
    return quantize(shaped.to(dtype), quantizer), None, None, None


def _write(result: torch.Tensor, target: torch.Tensor, accumulate: bool) -> None:
    result = result.reshape(target.shape)
    if accumulate:
        target.add_(result.to(target.dtype))
    else:
        target.copy_(result)


@kernel
def te_general_grouped_gemm(
    A: Sequence[Any], transa: bool, B: Sequence[Any], transb: bool, out: Sequence[torch.Tensor], out_dtype: Any,
    splits: Sequence[int], bias: Any, bias_dtype: Any, single_output: bool, gelu_in: Any, grad: bool, workspaces: Any,
    size: int, accumulate: bool, split: bool, *_: Any,
) -> Any:  # fmt: skip
    """A product for each expert, into its own tensor or into its rows of one."""
    targets = torch.split(out[0], list(splits)) if single_output else out
    for left, right, target in zip(A, B, targets, strict=True):
        if target.numel() == 0:
            continue
        if _rows(right) == 0:  # an expert without tokens
            if not accumulate:
                target.zero_()
            continue
        _write(product(left, transa, right, transb), target, accumulate)
    return bias


def _rows(operand: Any) -> int:
    return operand.numel() if is_plain(operand) else operand.size().numel()
