"""How fast are experts? Ours against megatron-core SequentialMLP and PyTorch grouped_mm; forward and backward, fp32.

The same weights, tokens and threads in one process, in turns; a figure is the median of all rounds. "products alone" is
the time of the six batched matrix products that any implementation has to compute: no implementation can be faster, and
the ratio that is possible falls as experts grow.

    python benchmarks/moe.py [--experts 64] [--tokens 32] [--rounds 15] [--threads 2] [--json]
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from megatron.core.tensor_parallel import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer import TransformerConfig
from megatron.core.transformer.mlp import MLPSubmodules
from megatron.core.transformer.moe.experts import SequentialMLP
from torch import Tensor

from megatron_ko.models.experts import GroupedExperts
from megatron_ko.parallel.platform import get_platform
from megatron_ko.parallel.seed import seed_everything
from megatron_ko.parallel.single import single_world

SIZES = ((64, 64), (128, 64), (128, 128), (256, 128), (256, 256), (512, 512))  # hidden size, width of an expert
THEIRS, TORCH, ALONE, OURS = "SequentialMLP", "grouped_mm", "products alone", "ours"
Way = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Case:
    """One row: the shape, how tokens are spread, and milliseconds of each way."""

    hidden: int
    width: int
    loads: str
    ms: dict[str, float]

    @property
    def gain(self) -> float:
        """How many times faster than megatron-core's."""
        return self.ms[THEIRS] / self.ms[OURS]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experts", type=int, default=64, help="Experts.")
    parser.add_argument("--tokens", type=int, default=32, help="Tokens of an expert, on average.")
    parser.add_argument("--rounds", type=int, default=15, help="Measurements of each way, in turns.")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads.")
    parser.add_argument("--json", action="store_true", help="Print JSON.")
    options = parser.parse_args()
    groups = single_world()
    seed_everything(1, groups)
    torch.set_num_threads(options.threads)
    even = torch.full((options.experts,), options.tokens)
    shapes = [(hidden, width, "even", even) for hidden, width in SIZES]
    shapes += [(128, 128, "uneven", uneven(options)), (128, 128, "very uneven", uneven(options, 1.5))]
    cases = []
    for hidden, width, loads, counts in shapes:
        cases.append(Case(hidden, width, loads, measure(hidden, width, counts, options.rounds)))
    print(json.dumps([vars(case) | {"gain": case.gain} for case in cases]) if options.json else table(cases, options))


def uneven(options: argparse.Namespace, spread: float = 0.3) -> Tensor:
    """Log-normal loads with the same total: busiest expert about 2 times the mean at 0.3, and 10 to 20 times at 1.5."""
    shares = torch.exp(torch.randn(options.experts, generator=torch.Generator().manual_seed(3)) * spread)
    total = options.experts * options.tokens
    drawn = torch.multinomial(shares, total, replacement=True, generator=torch.Generator().manual_seed(4))
    return torch.bincount(drawn, minlength=options.experts)


def measure(hidden: int, width: int, counts: Tensor, rounds: int) -> dict[str, float]:
    """Median milliseconds of a forward and a backward pass, by way."""
    groups, experts = single_world(), len(counts)
    settings = TransformerConfig(
        num_layers=1, hidden_size=hidden, ffn_hidden_size=width, moe_ffn_hidden_size=width, num_attention_heads=4,
        num_moe_experts=experts, gated_linear_unit=True, activation_func=F.silu, add_bias_linear=False,
    )  # fmt: skip
    layers = MLPSubmodules(linear_fc1=ColumnParallelLinear, linear_fc2=RowParallelLinear)
    theirs = SequentialMLP(experts, settings, layers, pg_collection=groups.pg)
    ours = GroupedExperts(experts, settings, groups.pg)
    with torch.no_grad():
        for number, expert in enumerate(theirs.local_experts):
            ours.weight1[number], ours.weight2[number] = expert.linear_fc1.weight, expert.linear_fc2.weight
    tokens = torch.randn(int(counts.sum()), hidden, device=get_platform().device, requires_grad=True)
    shares, upstream = torch.rand(len(tokens)), torch.randn_like(tokens)
    ways: dict[str, Way] = {
        THEIRS: lambda tokens, shares: theirs(tokens, counts, shares)[0],
        TORCH: lambda tokens, shares: with_grouped_mm(ours, tokens, counts, shares),
        OURS: lambda tokens, shares: ours(tokens, counts, shares)[0],
    }
    outputs = [way(tokens, shares) for way in ways.values()]
    for output in outputs:
        torch.testing.assert_close(output, outputs[0], rtol=1e-4, atol=1e-5)
    seconds: dict[str, list[float]] = {name: [] for name in (*ways, ALONE)}
    padded = torch.randn(experts, -(-len(tokens) // experts), hidden)
    for _ in range(rounds):
        for name, way in ways.items():
            for parameter in (tokens, *theirs.parameters(), *ours.parameters()):
                parameter.grad = None
            started = time.perf_counter()
            way(tokens, shares).backward(upstream)
            seconds[name].append(time.perf_counter() - started)
        started = time.perf_counter()
        products_alone(padded, ours.weight1.detach(), ours.weight2.detach())
        seconds[ALONE].append(time.perf_counter() - started)
    return {name: 1e3 * statistics.median(values) for name, values in seconds.items()}


def with_grouped_mm(experts: GroupedExperts, tokens: Tensor, counts: Tensor, shares: Tensor) -> Tensor:
    """The same layer on PyTorch's grouped product."""
    ends = counts.cumsum(0, dtype=torch.int32)
    gate, up = F.grouped_mm(tokens, experts.weight1.transpose(1, 2), offs=ends).chunk(2, dim=-1)
    return F.grouped_mm(F.silu(gate) * up * shares[:, None], experts.weight2.transpose(1, 2), offs=ends)


def products_alone(tokens: Tensor, first: Tensor, second: Tensor) -> None:
    """Forward, gradients of tokens and gradients of weights, for both matrices of all experts."""
    inner = torch.bmm(tokens, first.transpose(1, 2))
    half = inner[..., : second.shape[2]]
    torch.bmm(half, second.transpose(1, 2))
    torch.bmm(tokens, second)
    torch.bmm(tokens.transpose(1, 2), half)
    torch.bmm(inner, first)
    torch.bmm(inner.transpose(1, 2), tokens)


def table(cases: list[Case], options: argparse.Namespace) -> str:
    head = f"{options.experts} experts, {options.tokens} tokens each, {options.threads} threads; ms, forward + backward"
    names = (THEIRS, TORCH, ALONE, OURS)
    lines = [
        head,
        f"{'hidden':>6}{'width':>7}  {'loads':<12}" + "".join(f"{name:>16}" for name in names) + f"{'gain':>8}",
    ]
    for case in cases:
        times = "".join(f"{case.ms[name]:>16.2f}" for name in names)
        lines.append(f"{case.hidden:>6}{case.width:>7}  {case.loads:<12}{times}{case.gain:>7.1f}x")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
