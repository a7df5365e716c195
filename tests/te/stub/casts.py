"""Casts to 8 and 4 bits: which one a quantizer asks for, and where its results are put."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist

from stub.blocks import quantize_blockwise, quantize_mxfp8, quantize_nvfp4
from stub.extension import KernelMissing, kernel, kernels
from stub.formats import LARGEST, TORCH, matrix, saturate, wide

_BY_BLOCKS = {
    "MXFP8Quantizer": quantize_mxfp8,
    "Float8BlockQuantizer": quantize_blockwise,
    "NVFP4Quantizer": quantize_nvfp4,
}


@kernel
def create_empty_quantized_tensor(
    quantizer: Any, shape: Sequence[int], dtype: torch.dtype, device: Any, pin_memory: bool = False
) -> Any:
    """A tensor of the quantizer's kind, of zeros."""
    if type(quantizer).__name__ == "Float8Quantizer":
        return _empty_delayed(quantizer, tuple(shape), dtype)
    description = quantizer.storage_metadata(dtype)
    tensors = {name: tensor.zero_() for name, tensor in quantizer.alloc_tensors(tuple(shape), device="cpu").items()}
    kind, others = description["cls"], dict(description["nontensor_kwargs"])
    if kind.__name__ in ("Float8TensorStorage", "Float8Tensor"):
        parts = {"data": "_data", "data_transpose": "_transpose", "fp8_scale_inv": "_scale_inv"}
        arguments = {argument: tensors.get(name) for argument, name in parts.items()}
    else:
        names = ("rowwise_data", "rowwise_scale_inv", "columnwise_data", "columnwise_scale_inv")
        arguments = dict.fromkeys(names) | {name.lstrip("_"): tensor for name, tensor in tensors.items()}
        if kind.__name__.startswith("NVFP4"):
            arguments = dict.fromkeys(("amax_rowwise", "amax_columnwise")) | arguments
    if not kind.__name__.endswith("Storage"):
        others.pop("fake_dtype", None)
        others |= {"shape": tuple(shape), "dtype": dtype, "device": torch.device("cpu")}
    return kind(**arguments, **others)


def _empty_delayed(quantizer: Any, shape: tuple[int, ...], dtype: torch.dtype) -> Any:
    from transformer_engine.pytorch.tensor.float8_tensor import Float8Tensor
    from transformer_engine.pytorch.tensor.storage.float8_tensor_storage import Float8TensorStorage

    rows, columns = quantizer.rowwise_usage, quantizer.columnwise_usage
    parts = {
        "data": torch.zeros(shape, dtype=torch.uint8) if rows else None,
        "data_transpose": torch.zeros((shape[-1], *shape[:-1]), dtype=torch.uint8) if columns else None,
        "fp8_scale_inv": torch.ones(1),
        "fp8_dtype": quantizer.dtype,
        "quantizer": quantizer,
    }
    if quantizer.internal:
        return Float8TensorStorage(**parts, fake_dtype=dtype)
    return Float8Tensor(shape=shape, dtype=dtype, **parts)


@kernel
def quantize(tensor: torch.Tensor, quantizer: Any, output: Any = None, noop: Any = None) -> Any:
    """Cast a tensor; into ``output`` where there is one."""
    if quantizer is None:
        return tensor
    if output is None:
        output = create_empty_quantized_tensor(quantizer, tensor.shape, tensor.dtype, "cpu")
    kind = type(quantizer).__name__
    if kind in ("Float8CurrentScalingQuantizer", "Float8Quantizer"):
        _quantize_whole(matrix(tensor).float(), quantizer, output)
    elif kind in _BY_BLOCKS:
        _BY_BLOCKS[kind](matrix(tensor), quantizer, output)
    else:
        raise KernelMissing(f"quantize with {kind}")
    return output


def _quantize_whole(values: torch.Tensor, quantizer: Any, output: Any) -> None:
    """One scale for a tensor: that of earlier steps, or its own."""
    amax = values.abs().amax() if values.numel() else torch.zeros(())
    dtype = TORCH[int(quantizer.dtype)]
    if type(quantizer).__name__ == "Float8Quantizer":
        scale = quantizer.scale.float().reshape(())
        if quantizer.amax.numel():
            quantizer.amax.copy_(amax.reshape(quantizer.amax.shape))
    else:
        if quantizer.with_amax_reduction:
            dist.all_reduce(amax, dist.ReduceOp.MAX, group=quantizer.amax_reduction_group)
        assert not quantizer.force_pow_2_scales and quantizer.amax_epsilon == 0
        scale = torch.where(amax > 0, LARGEST[dtype] / amax, torch.ones(()))
    codes = saturate(values * scale, dtype).view(torch.uint8)
    if output._data is not None:
        output._data.view(values.shape).copy_(codes)
    if output._transpose is not None:
        output._transpose.view(values.shape[1], -1).copy_(codes.t())
        output._transpose_invalid = False
    output._scale_inv.copy_((1 / scale).reshape(output._scale_inv.shape))


@kernel
def split_quantize(tensor: torch.Tensor, splits: Sequence[int], quantizers: Sequence[Any], **_: Any) -> list[Any]:
    """Cast the rows of each expert with its own quantizer."""
    parts = torch.split(tensor, list(splits))
    return [quantize(part.contiguous(), quantizer) for part, quantizer in zip(parts, quantizers, strict=True)]


@kernel
def dequantize(storage: Any, dtype: Any) -> torch.Tensor:
    """The values of a quantised tensor, in its shape."""
    columnwise = getattr(storage, "_rowwise_data", getattr(storage, "_data", None)) is None
    return wide(storage, columnwise).to(TORCH[int(dtype)]).reshape(storage.size())


@kernel
def fp8_transpose(codes: torch.Tensor, dtype: Any, *, out: torch.Tensor | None = None) -> torch.Tensor:
    """[..., n] -> [n, ...]."""
    turned = matrix(codes).t().contiguous().view(codes.shape[-1], *codes.shape[:-1])
    return turned if out is None else out.copy_(turned)


@kernel
def fused_amax_and_scale_update_after_reduction(
    buffer: torch.Tensor, histories: Any, scales: Any, algorithm: str, dtype: Any, margin: float
) -> None:
    """Delayed scaling, once a step: the histories move by one, and scales follow from their largest value."""
    start = 0
    for history, scale in zip(histories, scales, strict=True):
        newest = buffer[start : start + scale.numel()]
        start += scale.numel()
        amax = torch.maximum(history[1:].amax(0), newest) if algorithm == "max" and len(history) > 1 else newest
        moved = torch.cat([torch.zeros_like(newest)[None], newest[None], history[1:-1]]) if len(history) > 1 else 0.0
        history.copy_(torch.as_tensor(moved))
        wanted = LARGEST[TORCH[int(dtype)]] / amax / 2**margin
        scale.copy_(torch.where((amax > 0) & amax.isfinite() & wanted.isfinite(), wanted, scale))


@kernel
def compute_amax(tensor: torch.Tensor, amax: torch.Tensor) -> None:
    """The largest magnitude of a tensor."""
    amax.copy_((tensor.float().abs().max() if tensor.numel() else torch.zeros(())).reshape(amax.shape))


@kernel
def multi_tensor_compute_scale_and_scale_inv(
    chunk: int, noop: Any, lists: Any, largest: float, powers_of_2: bool, epsilon: float
) -> None:
    """Scales of many tensors from their largest magnitudes."""
    for amax, scale, inverse in zip(*lists, strict=True):
        bounded = amax.clamp(min=epsilon)
        found = torch.where((bounded > 0) & bounded.isfinite(), largest / bounded, torch.ones(()))
        scale.copy_(torch.exp2(torch.floor(torch.log2(found))) if powers_of_2 else found)
        inverse.copy_(1 / scale)


@kernels("swizzle_scales_for_gemm_", "multi_tensor_swizzle_scales_for_gemm_")
def keep_scales(*_: Any, **__: Any) -> None:
    """Scales stay in the order of rows and columns here, which is the order that products read them in."""


def _block_numbers(count: int, start: int, width: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows and columns of the blocks that elements ``start`` to ``start + count`` of a matrix are in."""
    place = torch.arange(start, start + count)
    return place // width // size, place % width // size


@kernel
def fp8_block_scaling_compute_partial_amax(
    part: torch.Tensor, amax: torch.Tensor, height: int, width: int, start: int, size: int
) -> None:
    """Largest magnitudes of the blocks of a matrix, as far as this rank's part of its elements says."""
    row, column = _block_numbers(part.numel(), start, width, size)
    found = torch.zeros(amax.shape).flatten()
    found.scatter_reduce_(0, row * amax.shape[1] + column, part.detach().float().abs().flatten(), "amax")
    amax.copy_(found.view(amax.shape))


@kernel
def fp8_block_scaling_partial_cast(
    part: torch.Tensor, out: torch.Tensor, scale: torch.Tensor, height: int, width: int, start: int, size: int,
    dtype: Any,
) -> None:  # fmt: skip
    """The codes of this rank's part of the elements of a matrix."""
    scales = scale[_block_numbers(part.numel(), start, width, size)]
    out.copy_(saturate(part.detach().float().flatten() * scales, TORCH[int(dtype)]).view(torch.uint8).view(out.shape))
