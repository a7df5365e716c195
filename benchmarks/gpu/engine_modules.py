"""Modules of Transformer Engine on this GPU against PyTorch in fp32; imported where there are both."""

import os
from collections.abc import Callable, Iterator
from typing import Any

import torch
import transformer_engine.pytorch as te
from torch import Tensor
from transformer_engine.common.recipe import DelayedScaling, Float8BlockScaling, Float8CurrentScaling, Format
from transformer_engine.pytorch.optimizers import FusedAdam

BF16, FP8, FP32 = 1e-2, 8e-2, 1e-5  # largest relative differences; e4m3 has 4 significant bits
RECIPES = {
    "fp8_delayed": lambda: DelayedScaling(fp8_format=Format.HYBRID),
    "fp8_current": Float8CurrentScaling,
    "fp8_blockwise": Float8BlockScaling,
}


def fused_attention(heads: int, groups: int, width: int) -> Callable[..., Tensor]:
    """Causal attention with the fused kernels alone."""
    os.environ.update(NVTE_FUSED_ATTN="1", NVTE_FLASH_ATTN="0", NVTE_UNFUSED_ATTN="0")
    attention: Callable[..., Tensor] = te.DotProductAttention(
        heads, width, num_gqa_groups=groups, attn_mask_type="causal", qkv_format="sbhd"
    )
    return attention


def differences() -> Iterator[dict[str, Any]]:
    """Every module's relative difference, what is allowed, and what is wrong."""
    inputs = torch.randn(2048, 1024, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    checks: list[tuple[str, Callable[[], float], float]] = [
        ("linear bf16", lambda: linear(inputs, None), BF16),
        *((f"linear {name}", lambda make=make: linear(inputs, make()), FP8) for name, make in RECIPES.items()),
        ("RMSNorm", lambda: norm(inputs), BF16),
        ("norm and linear", lambda: norm_and_linear(inputs), BF16),
        ("grouped linear", lambda: grouped_linear(inputs), BF16),
        ("FusedAdam", adam, FP32),
    ]
    for name, check, limit in checks:
        try:
            found = check()
        except Exception as error:  # one that is broken is a finding, and the others are still of interest
            yield {"module": name, "problem": f"{type(error).__name__}: {str(error)[:300]}"}
            continue
        yield {"module": name, "difference": found, "limit": limit, "problem": "" if found <= limit else "too far"}


def relative(found: Tensor, expected: Tensor) -> float:
    """Relative difference in norm."""
    return float((found.float() - expected.float()).norm() / expected.float().norm())


def linear(inputs: Tensor, recipe: object | None) -> float:
    """The second product: delayed scaling takes its scales from the first."""
    layer = te.Linear(1024, 2048, bias=False, params_dtype=torch.bfloat16).cuda()
    for _ in range(2):
        with te.fp8_autocast(enabled=recipe is not None, fp8_recipe=recipe):
            output = layer(inputs)
    output.sum().backward()
    return relative(output, inputs.float() @ layer.weight.float().t())


def norm(inputs: Tensor) -> float:
    output = te.RMSNorm(1024, params_dtype=torch.bfloat16).cuda()(inputs)
    output.sum().backward()
    return relative(output, torch.nn.functional.rms_norm(inputs.float(), (1024,)))


def norm_and_linear(inputs: Tensor) -> float:
    layer = te.LayerNormLinear(1024, 2048, bias=False, normalization="RMSNorm", params_dtype=torch.bfloat16).cuda()
    output = layer(inputs)
    output.sum().backward()
    normed = torch.nn.functional.rms_norm(inputs.float(), (1024,))
    return relative(output, normed @ layer.weight.float().t())


def grouped_linear(inputs: Tensor) -> float:
    """Four matrices, as many rows each as an expert might get."""
    sizes = [500, 548, 600, 400]
    layer = te.GroupedLinear(4, 1024, 512, bias=False, params_dtype=torch.bfloat16).cuda()
    output = layer(inputs, sizes)
    output.sum().backward()
    parts = inputs.float().split(sizes)
    weights = (getattr(layer, f"weight{number}").float() for number in range(4))
    return relative(output, torch.cat([part @ weight.t() for part, weight in zip(parts, weights, strict=True)]))


def adam() -> float:
    """Five updates beside PyTorch's."""
    ours = torch.nn.Parameter(torch.randn(1000, device="cuda"))
    theirs = torch.nn.Parameter(ours.detach().clone())
    fused, plain = FusedAdam([ours], lr=1e-2), torch.optim.AdamW([theirs], lr=1e-2, weight_decay=0)
    for _ in range(5):
        gradient = torch.randn(1000, device="cuda")
        ours.grad, theirs.grad = gradient.clone(), gradient.clone()
        fused.step()
        plain.step()
    return relative(ours, theirs)
