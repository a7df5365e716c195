"""What does emulating MXFP8 cost? One linear layer, forward and backward, with and without, in turns.

python benchmarks/precision_cost.py [--threads 1]
"""

import argparse
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F

from megatron_ko.models.mxfp8.linear import Mxfp8Recipe, mxfp8_linear
from megatron_ko.models.mxfp8.numbers import E4M3
from megatron_ko.parallel.platform import get_platform

TOKENS, ROUNDS = 2048, 15
WIDTHS = {"cpu": (128, 512, 1024), "cuda": (1024, 4096, 8192)}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1, help="CPU threads.")
    print(measure_cost(parser.parse_args().threads))


def measure_cost(threads: int) -> str:
    """A table: tokens a second through one square layer, forward and backward."""
    torch.set_num_threads(threads)
    get_platform().select(0)
    lines = [
        f"One square linear layer, {TOKENS:,} tokens, forward and backward: tokens/s of the fastest of {ROUNDS}.",
        "",
        "| width | fp32 | emulated over fp32 | bf16 | emulated over bf16 |",
        "|---|---|---|---|---|",
    ]
    for width in WIDTHS[get_platform().device_type]:
        cells = [f"{width:,}"]
        for dtype in DTYPES.values():
            plain, emulated = speeds(width, dtype)
            cells += [f"{plain:,.0f}", f"{emulated:,.0f} ({emulated / plain:.2f}x)"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def speeds(width: int, dtype: torch.dtype) -> tuple[float, float]:
    """Tokens a second of the plain and of the emulated layer, the fastest of rounds in turns."""
    device = get_platform().device
    recipe = Mxfp8Recipe(E4M3, "down")
    inputs = torch.randn(TOKENS, width, device=device, dtype=dtype, requires_grad=True)
    weight = torch.randn(width, width, device=device, dtype=dtype, requires_grad=True)
    gradient = torch.randn(TOKENS, width, device=device, dtype=dtype)
    seconds: tuple[list[float], list[float]] = ([], [])
    for _ in range(ROUNDS + 1):
        for kind, multiply in enumerate((F.linear, lambda x, w: mxfp8_linear(x, w, recipe))):
            seconds[kind].append(time_once(lambda multiply=multiply: multiply(inputs, weight).backward(gradient)))
    plain, emulated = (TOKENS / min(times[1:]) for times in seconds)
    return plain, emulated


def time_once(work: Callable[[], object]) -> float:
    get_platform().synchronize()
    start = time.perf_counter()
    work()
    get_platform().synchronize()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
