"""Peak memory and time of output layer, cross entropy and their gradients, at a large vocabulary.

    python benchmarks/cross_entropy.py [--vocabulary 128000] [--tokens 2048] [--hidden 512]

Every way runs in a process of its own, on one CPU rank in fp32; memory is what its peak adds to what stood before.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable

import torch
import torch.distributed as dist
import torch.nn.functional as F

from megatron_ko.config import ParallelConfig
from megatron_ko.models.cross_entropy import linear_cross_entropy
from megatron_ko.models.vocabulary import Vocabulary
from megatron_ko.parallel.groups import initialise
from megatron_ko.parallel.platform import get_platform

REPEATS = 3
Loss = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def ways(limit: int) -> dict[str, Loss]:
    """Functions from hidden [s, 1, h], weight [v, h] and labels [1, s] to losses."""
    from megatron.core.tensor_parallel import vocab_parallel_cross_entropy

    return {
        "PyTorch cross_entropy": lambda x, w, y: F.cross_entropy((x @ w.t())[:, 0], y[0], reduction="none"),
        "megatron-core vocab_parallel": lambda x, w, y: vocab_parallel_cross_entropy(x @ w.t(), y.t().contiguous()),
        "megatron-ko": lambda x, w, y: linear_cross_entropy(
            x, w, y, Vocabulary(len(w), dist.group.WORLD), sequence_parallel=False, limit=limit
        ),
    }


def measure(name: str, options: argparse.Namespace) -> dict[str, float]:
    """Peak bytes above the inputs and seconds of one way; the sum of its losses and gradients shows that it agrees."""
    os.environ.update(MASTER_ADDR="localhost", MASTER_PORT="29533", RANK="0", WORLD_SIZE="1")
    dist.init_process_group(get_platform().backend)
    get_platform().select(0)
    initialise(ParallelConfig(), timeout_s=60)
    torch.manual_seed(0)
    hidden = torch.randn(options.tokens, 1, options.hidden, requires_grad=True)
    weight = (0.05 * torch.randn(options.vocabulary, options.hidden)).requires_grad_()
    labels = torch.randint(options.vocabulary, (1, options.tokens))
    function = ways(options.limit_mib << 20)[name]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    seconds = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        loss = function(hidden, weight, labels).mean()
        gradients = torch.autograd.grad(loss, (hidden, weight))
        seconds.append(time.perf_counter() - started)
        norms = [float(gradient.norm()) for gradient in gradients]
        del gradients
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
    return {"mib": peak / 2**20, "seconds": min(seconds), "loss": float(loss), "norm": sum(norms)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--vocabulary", type=int, default=128000)
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--limit-mib", type=int, default=128, help="training.logits_mib")
    parser.add_argument("--way", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.way:
        print(json.dumps(measure(options.way, options)))
        return
    print(f"{options.tokens:,} tokens x {options.vocabulary:,} ids, width {options.hidden}")
    print(f"megatron-ko: pieces of {options.limit_mib} MiB")
    print(f"{'':<30}{'peak MiB':>10}{'of naive':>10}{'ms':>10}{'loss':>12}{'|gradients|':>14}")
    naive = None
    for name in ways(0):
        command = [sys.executable, __file__, *sys.argv[1:], "--way", name]
        found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
        naive = naive or found["mib"]
        share = f"{found['mib'] / naive:.2f}x"
        print(
            f"{name:<30}{found['mib']:>10.0f}{share:>10}{1e3 * found['seconds']:>10.0f}{found['loss']:>12.6f}"
            f"{found['norm']:>14.7f}"
        )


if __name__ == "__main__":
    main()
