"""Numbers of 8 bits, and matrices in all of Transformer Engine's formats as fp32."""

from typing import Any

import torch

from stub.extension import KernelMissing

E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
TORCH = {
    0: torch.uint8,
    2: torch.int32,
    4: torch.float32,
    5: torch.float16,
    6: torch.bfloat16,
    7: E4M3,
    8: E5M2,
}  # by the number in DType
LARGEST = {E4M3: 448.0, E5M2: 57344.0}


def saturate(values: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """cvt.rn.satfinite: infinities and what is too large become the largest value, NaN stays."""
    return values.clamp(-LARGEST[dtype], LARGEST[dtype]).to(dtype)


def matrix(tensor: torch.Tensor) -> torch.Tensor:
    """[..., n] -> [m, n]."""
    return tensor.detach().reshape(-1, tensor.shape[-1])


def is_plain(operand: Any) -> bool:
    """Whether an operand is an ordinary tensor."""
    return isinstance(operand, torch.Tensor) and not hasattr(operand, "_quantizer")


def wide(operand: Any, columnwise: bool = False) -> torch.Tensor:
    """The values of an operand as [rows, columns] in fp32.

    Args:
        operand: a tensor, or a storage of any format.
        columnwise: which of its two copies a product reads: the one whose blocks lie along the rows.
    """
    if is_plain(operand):
        return matrix(operand).float()
    kind = type(operand).__name__
    for prefix, read in _READERS.items():
        if kind.startswith(prefix):
            return read(operand, columnwise)
    raise KernelMissing(f"values of {kind}")


def _float8(storage: Any, columnwise: bool) -> torch.Tensor:
    if storage._data is not None:
        codes = storage._data.reshape(-1, storage._data.shape[-1])
    else:
        codes = storage._transpose.reshape(storage._transpose.shape[0], -1).t()
    codes = codes.contiguous().view(TORCH[int(storage._fp8_dtype)])
    return codes.float() * storage._scale_inv.float().reshape(())


def _mxfp8(storage: Any, columnwise: bool) -> torch.Tensor:
    name = "columnwise" if columnwise else "rowwise"
    data, scales = getattr(storage, f"_{name}_data"), getattr(storage, f"_{name}_scale_inv")
    assert data is not None, f"a product wants {name} data, which this tensor does not have"
    dim = 0 if columnwise else 1
    blocks = matrix(data).view(TORCH[int(storage._fp8_dtype)]).float().unflatten(dim, (-1, 32))
    rows, columns = (size for number, size in enumerate(blocks.shape) if number != dim + 1)
    power = torch.ldexp(torch.ones(rows, columns), scales[:rows, :columns].int() - 127)
    return (blocks * power.unsqueeze(dim + 1)).flatten(dim, dim + 1)


def _blockwise(storage: Any, columnwise: bool) -> torch.Tensor:
    """Transformer Engine's own Python code reads it, from the copy that is asked for."""
    return matrix(_only(storage, columnwise).dequantize(dtype=torch.float32))


def _only(storage: Any, columnwise: bool) -> Any:
    from transformer_engine.pytorch.tensor.storage.float8_blockwise_tensor_storage import Float8BlockwiseQTensorStorage

    rows = (None, None) if columnwise else (storage._rowwise_data, storage._rowwise_scale_inv)
    columns = (storage._columnwise_data, storage._columnwise_scale_inv) if columnwise else (None, None)
    assert (*rows, *columns).count(None) == 2, "a product wants data that this tensor does not have"
    return Float8BlockwiseQTensorStorage(
        *rows, *columns, storage._fp8_dtype, storage._quantizer, storage._is_2D_scaled, fake_dtype=torch.float32
    )


def _nvfp4(storage: Any, columnwise: bool) -> torch.Tensor:
    from transformer_engine.pytorch.custom_recipes.reference_nvfp4 import cast_from_fp4x2

    name = "columnwise" if columnwise else "rowwise"
    data, scales = getattr(storage, f"_{name}_data"), getattr(storage, f"_{name}_scale_inv")
    assert data is not None, f"a product wants {name} data, which this tensor does not have"
    codes = cast_from_fp4x2(data.reshape(-1, data.shape[-1]) if not columnwise else data.flatten(1), torch.float32)
    blocks = codes.unflatten(1, (-1, 16))
    used = scales[: blocks.shape[0], : blocks.shape[1]].contiguous().view(E4M3).float()
    values = (blocks * used.unsqueeze(2)).flatten(1) * (getattr(storage, f"_amax_{name}") / (6 * 448))
    return values.t() if columnwise else values


_READERS = {
    "Float8Tensor": _float8,
    "MXFP8": _mxfp8,
    "Float8Blockwise": _blockwise,
    "NVFP4": _nvfp4,
}
