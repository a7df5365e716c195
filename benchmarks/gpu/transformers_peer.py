"""transformers' training step: bf16 autocast over fp32 weights, compiled as a whole, SDPA attention, fused AdamW."""

import time
from collections.abc import Callable

import torch
from peer_models import transformers_model

from megatron_ko.config import ModelConfig
from megatron_ko.parallel.platform import get_platform


def measure(
    model: ModelConfig, device: str, shape: tuple[int, int], steps: int, with_liger: bool
) -> tuple[list[float], int]:
    """Seconds of every step, and the peak memory in bytes.

    Args:
        model: the network.
        device: "cuda" or "cpu".
        shape: sequences and their length.
        steps: how many.
        with_liger: with Liger's kernels for norms, RoPE, SwiGLU, and output layer with loss in one.
    """
    if with_liger:
        liger_for(model.family)()
    with torch.device(device):
        network = transformers_model(model)
    # On a CPU only that it is traced is shown: its kernels take a minute to be compiled.
    compiled = torch.compile(network, backend="inductor" if device == "cuda" else "eager")
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, betas=(0.9, 0.95), fused=True)
    tokens = torch.randint(model.vocab_size, shape, generator=torch.Generator().manual_seed(0)).to(device)
    seconds = []
    for _ in range(steps):
        started = time.perf_counter()
        with torch.autocast(device, torch.bfloat16):
            loss = compiled(input_ids=tokens, labels=tokens).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        loss.item()  # waits for the device
        seconds.append(time.perf_counter() - started)
    return seconds, get_platform().memory().allocated_peak


def liger_for(family: str) -> Callable[[], None]:
    """What puts Liger's kernels in place of transformers' modules, before the network is built."""
    from liger_kernel import transformers as liger

    patches: dict[str, Callable[[], None]] = {
        "llama": liger.apply_liger_kernel_to_llama,
        "qwen3": liger.apply_liger_kernel_to_qwen3,
        "mixtral": liger.apply_liger_kernel_to_mixtral,
        "keural": liger.apply_liger_kernel_to_mixtral,
        "qwen3_moe": liger.apply_liger_kernel_to_qwen3_moe,
    }
    return patches[family]
