"""What a window saves: attention of 8192 tokens in full, with a window of 512, and with documents.

The portable attention of this project against PyTorch's scaled_dot_product_attention with a mask of the whole sequence,
which is what transformers does with a window. fp32 on a CPU, all ways in one process and in turns; a figure is the
median of the rounds.

    python benchmarks/attention.py [--length 8192] [--window 512] [--threads 1] [--rounds 5]
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from megatron.core.transformer import TransformerConfig
from megatron.core.transformer.enums import AttnMaskType
from torch import Tensor

from megatron_ko.models.attention import PortableAttention
from megatron_ko.parallel.platform import get_platform

HEADS, GROUPS, WIDTH = 8, 2, 64
DOCUMENT = 1000  # mean length of a document
Attention = Callable[[Tensor, Tensor, Tensor], Tensor]  # [s, b, n, d] and twice [s, b, g, d] -> [s, b, n * d]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--length", type=int, default=8192, help="Tokens of the sequence.")
    parser.add_argument("--window", type=int, default=512, help="Earlier tokens that a token sees beside itself.")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads.")
    parser.add_argument("--rounds", type=int, default=5, help="Measurements of each way.")
    options = parser.parse_args()
    get_platform()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    inputs = [torch.randn(options.length, 1, n, WIDTH, requires_grad=True) for n in (HEADS, GROUPS, GROUPS)]
    ways = all_ways(options.length, options.window)
    forward: dict[str, list[float]] = {name: [] for name in ways}
    both: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(options.rounds):
        for name, attention in ways.items():
            forward[name].append(seconds_forward(attention, inputs))
            both[name].append(seconds_both(attention, inputs))
    print(
        f"length {options.length}, {HEADS} query heads, {GROUPS} key/value heads x {WIDTH}, {options.threads} threads"
    )
    print(table({name: [statistics.median(of[name]) for of in (forward, both)] for name in ways}))
    print(agreement(ways, inputs))


def all_ways(length: int, window: int) -> dict[str, Attention]:
    """What is compared; the first is what the others are held against."""
    documents = (torch.rand(1, length) < 1 / DOCUMENT).cumsum(1)
    place = torch.arange(length)
    near = (place <= place.unsqueeze(1)) & (place.unsqueeze(1) - place <= window)  # [s, t]
    same = documents.unsqueeze(2) == documents.unsqueeze(1)
    return {
        "full, megatron-ko": portable(None),
        f"window {window}, megatron-ko": portable(window),
        f"window {window}, PyTorch with a mask": masked(near),
        f"documents of {DOCUMENT}, megatron-ko": portable(None, documents),
        f"documents of {DOCUMENT}, PyTorch with a mask": masked((place <= place.unsqueeze(1)) & same),
    }


def portable(window: int | None, documents: Tensor | None = None) -> Attention:
    """The attention of a portable layer."""
    settings = TransformerConfig(
        num_layers=1,
        hidden_size=HEADS * WIDTH,
        num_attention_heads=HEADS,
        num_query_groups=GROUPS,
        attention_dropout=0.0,
        window_size=None if window is None else (window, 0),
    )
    attention = PortableAttention(settings, 1, AttnMaskType.causal, "self")
    return lambda query, key, value: attention(query, key, value, documents)


def masked(mask: Tensor) -> Attention:
    """PyTorch's attention under a mask [s, t] or [b, s, t]."""
    whole = mask.expand(1, 1, *mask.shape[-2:])

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        inputs = (tensor.permute(1, 2, 0, 3) for tensor in (query, key, value))
        return F.scaled_dot_product_attention(*inputs, attn_mask=whole, enable_gqa=True).permute(2, 0, 1, 3).flatten(2)

    return attend


def seconds_forward(attention: Attention, inputs: list[Tensor]) -> float:
    started = time.perf_counter()
    with torch.no_grad():
        attention(*inputs)
    return time.perf_counter() - started


def seconds_both(attention: Attention, inputs: list[Tensor]) -> float:
    started = time.perf_counter()
    torch.autograd.grad(attention(*inputs).sum(), inputs)
    return time.perf_counter() - started


def table(medians: dict[str, list[float]]) -> str:
    """Milliseconds, and how many times faster than the first row."""
    full = next(iter(medians.values()))
    lines = [f"{'':<42}{'forward ms':>12}{'faster':>9}{'and backward ms':>18}{'faster':>9}"]
    lines += [
        f"{name:<42}{1e3 * forward:>12.0f}{full[0] / forward:>8.1f}x{1e3 * both:>18.0f}{full[1] / both:>8.1f}x"
        for name, (forward, both) in medians.items()
    ]
    return "\n".join(lines)


def agreement(ways: dict[str, Attention], inputs: list[Tensor]) -> str:
    """The largest difference between ours and the masks."""
    with torch.no_grad():
        _, *outputs = [attention(*inputs) for attention in ways.values()]
    pairs = zip(outputs[0::2], outputs[1::2], strict=True)
    return f"largest difference to the mask: {max(float((ours - mask).abs().max()) for ours, mask in pairs):.1e}"


if __name__ == "__main__":
    main()
