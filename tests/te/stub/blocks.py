"""Casts with a scale for each block: MXFP8, FP8 with 128 or 128 x 128 values a block, NVFP4."""

import math
from typing import Any

import torch

from stub.extension import KernelMissing
from stub.formats import LARGEST, TORCH, saturate


def mxfp8_scales(amax: torch.Tensor, largest: float) -> torch.Tensor:
    """E8M0 codes, rounded up: ptx::float_to_e8m0 of the largest magnitudes (fp32) times (float)(1 / largest)."""
    value = amax * torch.tensor(1.0 / largest, dtype=torch.float32)
    bits = value.view(torch.int32)
    exponent, mantissa = bits >> 23, bits & 0x7FFFFF
    up = (mantissa > 0) & (exponent != 0xFE) & ~((exponent == 0) & (mantissa <= 0x400000))
    scale = exponent + up.int()
    scale = torch.where(value.isinf(), 0xFE, scale)
    scale = torch.where(value.isnan(), 0xFF, scale)
    return torch.where(value == 0, 0, scale)


def _reciprocal(scale: torch.Tensor) -> torch.Tensor:
    """ptx::exp2f_rcp<float> of E8M0 codes."""
    bits = torch.where(scale == 254, 0x00400000, (254 - scale) << 23)
    return torch.where(scale == 255, 0x7FFFFFFF, bits).int().view(torch.float32)


def mxfp8(values: torch.Tensor, dtype: torch.dtype, dim: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes and scales of a matrix in blocks of 32 along ``dim``, as quantize_mxfp8.cuh computes them."""
    blocks = values.float().unflatten(dim, (-1, 32))
    amax = blocks.abs().nan_to_num(0.0, posinf=math.inf).amax(dim + 1, keepdim=True)  # fmaxf drops NaN
    scale = mxfp8_scales(amax, LARGEST[dtype])
    codes = saturate(blocks * _reciprocal(scale), dtype)
    return codes.flatten(dim, dim + 1), scale.squeeze(dim + 1)


def quantize_mxfp8(values: torch.Tensor, quantizer: Any, output: Any) -> None:
    """Both copies of a matrix [m, n], or the one that is wanted."""
    output._with_gemm_swizzled_scales = False
    for name, dim in (("rowwise", 1), ("columnwise", 0)):
        if (data := getattr(output, f"_{name}_data")) is not None:
            codes, scales = mxfp8(values, TORCH[int(quantizer.dtype)], dim)
            data.view(values.shape).copy_(codes.view(torch.uint8))
            _put(getattr(output, f"_{name}_scale_inv"), scales.to(torch.uint8))


def _put(store: torch.Tensor, scales: torch.Tensor) -> None:
    """Scales, with zeros where the store is filled up to a multiple."""
    store.zero_()
    store[: scales.shape[0], : scales.shape[1]] = scales


def blockwise_scale(amax: torch.Tensor, dtype: torch.dtype, source: torch.dtype, quantizer: Any) -> torch.Tensor:
    """compute_scale_from_amax of recipe_common.cuh: what values are multiplied with before they are cast."""
    amax = amax.clamp(min=quantizer.amax_epsilon)
    scale = (LARGEST[dtype] / amax).nan_to_num(posinf=torch.finfo(source).max)
    scale = torch.where((amax == 0) | amax.isinf(), 1.0, scale)
    if quantizer.force_pow_2_scales:
        scale = (scale.view(torch.int32) & 0x7F800000).view(torch.float32)
    return scale


def quantize_blockwise(values: torch.Tensor, quantizer: Any, output: Any) -> None:
    """A scale for 128 x 128 values of a weight, for 1 x 128 of an activation. The columns' copy is transposed."""
    for name, source in (("rowwise", values), ("columnwise", values.t())):
        if (data := getattr(output, f"_{name}_data")) is not None:
            codes, inverse = _blockwise(source, quantizer)
            data.view(source.shape).copy_(codes.view(torch.uint8))
            # 1D scales are stored as [blocks, rows], 2D ones as [blocks of rows, blocks].
            _put(getattr(output, f"_{name}_scale_inv"), inverse if quantizer.block_scaling_dim == 2 else inverse.t())


def _blockwise(values: torch.Tensor, quantizer: Any) -> tuple[torch.Tensor, torch.Tensor]:
    rows, columns = values.shape
    dtype, size = TORCH[int(quantizer.dtype)], quantizer.block_len
    high = size if quantizer.block_scaling_dim == 2 else 1
    padded = torch.nn.functional.pad(values.float(), (0, -columns % size, 0, -rows % high))
    blocks = padded.unflatten(1, (-1, size)).unflatten(0, (-1, high))  # [rows / high, high, columns / size, size]
    scale = blockwise_scale(blocks.abs().amax((1, 3), keepdim=True), dtype, values.dtype, quantizer)
    codes = saturate(blocks * scale, dtype).flatten(2).flatten(0, 1)[:rows, :columns]
    return codes.contiguous(), (1 / scale).squeeze(3).squeeze(1)


def quantize_nvfp4(values: torch.Tensor, quantizer: Any, output: Any) -> None:
    """Transformer Engine's own reference computes scales, transform and rounding to nearest.

    Stochastic rounding it does not have. Here it takes the reference's scales, and random numbers of PyTorch: other
    ones than the kernel's, with the same mean.
    """
    from transformer_engine.pytorch.custom_recipes import reference_utils
    from transformer_engine.pytorch.custom_recipes.reference_nvfp4 import NVFP4QuantizerRef

    if quantizer.with_amax_reduction or quantizer.row_scaled_nvfp4 or quantizer.nvfp4_use_4over6:
        raise KernelMissing("NVFP4 with reduced, row-wise or 4-over-6 scales")
    reference = NVFP4QuantizerRef(
        reference_utils.Fp4Formats.E2M1,
        rowwise=output._rowwise_data is not None,
        columnwise=output._columnwise_data is not None,
        quant_tile_shape=(16, 16) if quantizer.with_2d_quantization else (1, 16),
        with_rht=quantizer.with_rht,
        with_random_sign_mask=quantizer.rht_matrix_random_sign_mask_t != 0,
    )
    codes, scales, turned, turned_scales, amax, turned_amax = reference._quantize(values)
    output._with_gemm_swizzled_scales = False
    for name, data, scale, largest in (
        ("rowwise", codes, scales, amax),
        ("columnwise", turned, turned_scales, turned_amax),
    ):
        if data is None:
            continue
        if quantizer.stochastic_rounding:
            source = values if name == "rowwise" else reference._apply_rht(values.t().contiguous())
            data = _rounded_by_chance(source, scale.float() * (largest / (6 * 448)))
        store = getattr(output, f"_{name}_data")
        store.view(store.shape[0] if name == "columnwise" else -1, data.shape[1]).copy_(data.view(torch.uint8))
        _put(getattr(output, f"_{name}_scale_inv"), scale.contiguous().view(torch.uint8))
        getattr(output, f"_amax_{name}").copy_(largest)


_FP4 = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])


def _rounded_by_chance(values: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """Packed codes of a matrix; a value between two codes becomes either, the nearer one more often."""
    inverse = torch.where(scales > 0, 1 / scales, 0.0).repeat_interleave(16, 1)
    scaled = (values.float() * inverse).clamp(-6, 6)
    magnitude = scaled.abs()
    above = torch.bucketize(magnitude, _FP4).clamp(min=1, max=7)
    low, high = _FP4[above - 1], _FP4[above]
    code = above - (torch.rand(values.shape) * (high - low) >= magnitude - low).long()
    code = (code + 8 * (scaled < 0)).to(torch.uint8)
    return code[:, 0::2] | (code[:, 1::2] << 4)
