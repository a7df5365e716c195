"""Which attention Transformer Engine took is told, and the unfused one is never taken in silence on a GPU."""

import logging
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from megatron_ko.errors import LaunchError
from megatron_ko.models import attention_choice
from megatron_ko.parallel.platform import Platform


class Attention(torch.nn.Module):
    """As Transformer Engine's: it computes, and leaves a record of how."""

    def forward(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        return query.flatten(-2)


def attend(monkeypatch: pytest.MonkeyPatch, allowed: bool = False, dtype: torch.dtype = torch.bfloat16, **took: Any):
    record = {"use_fused_attention": False, "use_flash_attention": False, **took}
    monkeypatch.setitem(sys.modules, attention_choice._RECORD, SimpleNamespace(_attention_backends=record))
    module = attention_choice._telling_kernel(Attention, allowed)()
    query, key = torch.zeros(64, 2, 4, 8, dtype=dtype), torch.zeros(64, 2, 2, 8, dtype=dtype)
    assert module(query, key, key).shape == (64, 2, 32)
    return attention_choice.kernels_of([torch.nn.Sequential(module, module)])


@pytest.fixture
def on_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention_choice, "get_platform", lambda: Platform("cuda", "nccl"))


def test_the_kernel_is_named(monkeypatch: pytest.MonkeyPatch, on_cuda: None) -> None:
    backend = "NVTE_Fused_Attn_Backend.NVTE_F16_arbitrary_seqlen"
    named = attend(monkeypatch, use_fused_attention=True, fused_attention_backend=backend)
    assert named == "fused F16_arbitrary_seqlen"
    assert attend(monkeypatch, use_flash_attention=True, flash_attention_backend="2.8.1") == "flash 2.8.1"


def test_unfused_attention_on_a_gpu_is_refused_with_its_cost(monkeypatch: pytest.MonkeyPatch, on_cuda: None) -> None:
    with pytest.raises(
        LaunchError, match=r"no fused attention[\s\S]*GiB per layer[\s\S]*precision.unfused_attention=true"
    ):
        attend(monkeypatch)
    monkeypatch.setattr(attention_choice, "_loaded", lambda _: ["/a/libcudnn.so.9", "/b/libcudnn.so.9"])
    with pytest.raises(LaunchError, match=r"/a/libcudnn.so.9, /b/libcudnn.so.9[\s\S]*CUDNN_HOME"):
        attend(monkeypatch)


@pytest.mark.parametrize(("allowed", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_where_it_is_asked_for_it_is_a_warning(
    allowed: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch, on_cuda: None, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(logging.getLogger("megatron_ko"), "propagate", True)
    assert attend(monkeypatch, allowed, dtype) == "unfused"
    assert "attention is unfused" in caplog.text


def test_on_a_cpu_nothing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    assert attend(monkeypatch) == "unfused"
