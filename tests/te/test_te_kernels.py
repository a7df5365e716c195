"""The stand-in's own kernels against others: PyTorch's attention, our MXFP8, Transformer Engine's references."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformer_engine.pytorch as te
from stub.formats import E4M3, wide
from transformer_engine.pytorch.cpp_extensions.fused_attn import FusedAttnBackend, fused_attn_bwd, fused_attn_fwd
from transformer_engine.pytorch.custom_recipes.reference_current_scaling import CurrentScalingQuantizerRef
from transformer_engine.pytorch.tensor.float8_tensor import Float8CurrentScalingQuantizer

from megatron_ko.models.mxfp8.numbers import E4M3 as FORMAT
from megatron_ko.models.mxfp8.numbers import quantise
from megatron_ko.parallel.platform import get_platform

get_platform()  # answers what Transformer Engine asks CUDA
SCALED = te.constants.DType.kFloat8E4M3


def values(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    """bf16 numbers of many magnitudes, a row of zeros among them."""
    draw = torch.Generator().manual_seed(seed)
    numbers = torch.randn(rows, columns, generator=draw) * torch.exp2(torch.randint(-20, 20, (rows, 1), generator=draw))
    numbers[3] = 0
    return numbers.bfloat16()


def test_mxfp8_has_the_bits_of_the_emulation() -> None:
    source = values(64, 96)
    cast = te.MXFP8Quantizer(SCALED, rowwise=True, columnwise=True)(source)
    for columnwise, dim in ((False, 1), (True, 0)):
        assert wide(cast, columnwise).equal(quantise(source, FORMAT, dim, "up").dequantise())
        assert not wide(cast, columnwise).equal(quantise(source, FORMAT, dim, "down").dequantise())
    assert cast.dequantize().equal(wide(cast).bfloat16())


def test_current_scaling_has_the_codes_of_transformer_engines_reference() -> None:
    source = values(32, 48)
    quantizer = Float8CurrentScalingQuantizer(SCALED, device=torch.device("cpu"), rowwise=True, columnwise=False)
    reference = CurrentScalingQuantizerRef(dtype=E4M3, rowwise=True, columnwise=False)
    cast, expected = quantizer(source), reference.quantize(source)
    assert cast._data.view(E4M3).float().equal(expected.data.view(E4M3).float())
    assert cast._scale_inv.item() == pytest.approx(expected.scale.item(), rel=1e-6)


@pytest.mark.parametrize("dims", [1, 2])
def test_block_scales_are_powers_of_two_that_use_the_range(dims: int) -> None:
    source = values(256, 384)
    cast = te.Float8BlockQuantizer(SCALED, rowwise=True, columnwise=True, block_scaling_dim=dims)(source)
    rows, high = source.float(), 128 if dims == 2 else 1
    for columnwise, turned in ((False, rows), (True, rows.t())):
        got = wide(cast, columnwise)
        got = got.t() if columnwise else got
        blocks = turned.unflatten(1, (-1, 128)).unflatten(0, (-1, high))
        amax = blocks.abs().amax((1, 3), keepdim=True)
        scale = torch.exp2(torch.floor(torch.log2(448 / amax))).nan_to_num(posinf=1.0)
        expected = (blocks * scale).to(E4M3).float() / scale
        assert got.equal(expected.flatten(2).flatten(0, 1))
    assert cast.dequantize().float().equal(wide(cast).bfloat16().float())


def test_nvfp4_transforms_and_rounds_by_chance_without_a_bias() -> None:
    source = torch.randn(64, 128, generator=torch.Generator().manual_seed(1)).bfloat16()
    nearest = te.NVFP4Quantizer(rowwise=True, columnwise=True, with_rht=True)(source)
    assert 0.05 < apart(wide(nearest), source.float()) < 0.15
    # Columns are transformed; the transform is its own inverse in a product of two of them.
    assert apart(wide(nearest, True).t() @ wide(nearest, True), source.t().float() @ source.float()) < 0.15
    torch.manual_seed(0)
    quantizer = te.NVFP4Quantizer(rowwise=True, columnwise=False, stochastic_rounding=True)
    mean = torch.stack([wide(quantizer(source)) for _ in range(200)]).mean(0)
    assert apart(mean, source.float()) < 0.02 < apart(wide(quantizer(source)), source.float())


def apart(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).norm() / other.norm())


@pytest.mark.parametrize("layout", ["sbhd", "bshd"])
@pytest.mark.parametrize(("mask", "window"), [("causal", (-1, 0)), ("causal", (5, 0)), ("no_mask", (-1, -1))])
def test_fused_attention_is_pytorchs(layout: str, mask: str, window: tuple[int, int]) -> None:
    torch.manual_seed(0)
    length, rows = 24, 2
    q, k, v = (torch.randn(rows, length, heads, 16, requires_grad=True) for heads in (4, 2, 2))
    distance = torch.arange(length)[:, None] - torch.arange(length)
    seen = (distance >= 0) & (distance <= window[0] if window[0] >= 0 else True) if mask == "causal" else None
    expected = torch.nn.functional.scaled_dot_product_attention(
        *(tensor.transpose(1, 2) for tensor in (q, k, v)), attn_mask=seen, scale=0.3, enable_gqa=True
    ).transpose(1, 2)
    gradient = torch.randn_like(expected)
    expected.backward(gradient)

    def placed(tensor: torch.Tensor) -> torch.Tensor:
        return (tensor.transpose(0, 1) if layout == "sbhd" else tensor).detach().contiguous()

    borders = torch.arange(0, (rows + 1) * length, length, dtype=torch.int32)
    sizes = (length, length, borders, borders, placed(q), placed(k), placed(v))
    backend = FusedAttnBackend["F16_arbitrary_seqlen"]
    how: dict[str, Any] = {"attn_scale": 0.3, "attn_mask_type": mask, "window_size": window, "o_format": layout}
    how["qkv_layout"] = "_".join([layout] * 3)
    out, saved = fused_attn_fwd(True, *sizes, torch.float32, backend, **how)
    torch.testing.assert_close(out, placed(expected))
    how |= {"do_format": layout, "dqkv_layout": how["qkv_layout"]}
    found = fused_attn_bwd(*sizes, out, placed(gradient), torch.float32, saved, backend, **how)
    for got, tensor in zip(found, (q, k, v), strict=False):
        assert tensor.grad is not None
        torch.testing.assert_close(got, placed(tensor.grad))


def test_the_package_without_its_extension_is_refused() -> None:
    """In a process of its own, without the stand-in, as on a machine with a GPU: elsewhere the package is hidden."""
    program = """
import sys
from megatron_ko.errors import KoError
from megatron_ko.parallel import compat
del sys.modules["transformer_engine"]
try:
    compat.prepare_imports()
except KoError as error:
    sys.exit(f"{error}")
"""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("NVTE", "TRITON"))}
    environment["PYTHONPATH"] = str(Path(sys.prefix) / "te")
    ended = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert ended.returncode == 1, ended.stderr
    assert "Transformer Engine is installed, but cannot be imported" in ended.stderr
    assert "meta package" in ended.stderr and "--no-build-isolation" in ended.stderr
    assert "Traceback" not in ended.stderr
