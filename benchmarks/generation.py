"""Greedy generation of a native model against transformers on the same weights, type and threads.

    OMP_WAIT_POLICY=passive python benchmarks/generation.py models/smollm2 SmolLM2-135M-Instruct

Both write 40 tokens after the same prompts, in one process and in turn, each first in every other round. Another
process may take a core at any time, so the median over the rounds counts: of the speeds, and of each round's quotient.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from megatron_ko.artifacts.native import find_pretrained
from megatron_ko.data.tokenizer import load_tokenizer
from megatron_ko.eval.generate import continue_tokens
from megatron_ko.eval.load import Loaded
from megatron_ko.eval.sampling import Sampler, Sampling
from megatron_ko.models.inference import blueprint_of, load_for_inference
from megatron_ko.parallel.platform import get_platform

NEW = 40
PROMPTS = (
    "The Moon is", "Water is", "The library keeps", "A river does not", "To sort a list", "Every spring the",
    "The capital of France", "Plants use",
)  # fmt: skip
TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("native", type=Path)
    parser.add_argument("folder", type=Path, help="the same model for transformers")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--dtype", nargs="*", choices=TYPES, default=[*TYPES])
    options = parser.parse_args()
    print(f"tokens/s, {torch.get_num_threads()} threads, {options.rounds} rounds in turn")
    print("dtype  prompts  megatron-ko  transformers  as fast  quarter to three quarters of the rounds")
    for name in options.dtype:
        ours = load(options.native, TYPES[name])
        theirs = AutoModelForCausalLM.from_pretrained(options.folder, dtype=TYPES[name]).eval()
        theirs.generation_config.eos_token_id = None
        for batch in (1, 8):
            rows = [[ours.tokenizer.eod, *ours.tokenizer.encode(text)] for text in PROMPTS[:batch]]
            rows = [row[: min(map(len, rows))] for row in rows]
            told = compare(partial(native_tokens, ours), partial(peer_tokens, theirs), rows, options.rounds)
            print(f"{name}  {batch:>7}  {told}", flush=True)


def load(folder: Path, dtype: torch.dtype) -> Loaded:
    """The native model in a type, which ``generate`` takes from the run, or fp32."""
    found = find_pretrained(folder)
    assert found.tokenizer is not None
    network = load_for_inference(blueprint_of(found.model, dtype), found.weights)
    return Loaded(network, load_tokenizer(found.tokenizer), found.model, found.step, get_platform().device)


Write = Callable[[list[list[int]]], list[list[int]]]


def compare(ours: Write, theirs: Write, rows: list[list[int]], rounds: int) -> str:
    """Speeds and quotients of both, and how many of their tokens are alike."""
    speeds: dict[Write, list[float]] = {ours: [], theirs: []}
    for number in range(-1, rounds):  # one to warm up
        found = {}
        for write in (ours, theirs) if number % 2 else (theirs, ours):
            start = time.perf_counter()
            found[write] = write(rows)
            if number >= 0:
                speeds[write].append(len(rows) * NEW / (time.perf_counter() - start))
    quotients = [one / other for one, other in zip(speeds[ours], speeds[theirs], strict=True)]
    low, middle, high = statistics.quantiles(quotients, n=4)
    alike = sum(a == b for pair in zip(found[ours], found[theirs], strict=True) for a, b in zip(*pair, strict=True))
    fast = [statistics.median(speeds[write]) for write in (ours, theirs)]
    spread = f"{low:.2f} to {high:.2f}; {alike} of {len(rows) * NEW} ids alike"
    return f"{fast[0]:>11.1f}  {fast[1]:>12.1f}  {middle:>7.2f}  {spread}"


def native_tokens(loaded: Loaded, rows: list[list[int]]) -> list[list[int]]:
    """What the native model writes, row by row."""
    sampler = Sampler(Sampling(max_new_tokens=NEW, temperature=0.0), len(rows))
    steps = list(continue_tokens(loaded, rows, sampler, NEW))
    return [[step[row] for step in steps] for row in range(len(rows))]


def peer_tokens(network: torch.nn.Module, rows: list[list[int]]) -> list[list[int]]:
    """What transformers writes, row by row."""
    given = torch.tensor(rows)
    tokens = network.generate(  # type: ignore[operator]
        given, attention_mask=torch.ones_like(given), max_new_tokens=NEW, do_sample=False, pad_token_id=0
    )
    return [row[given.shape[1] :].tolist() for row in tokens]


if __name__ == "__main__":
    main()
