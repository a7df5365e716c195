"""Greedy generation of a native model against transformers on the same weights, type and threads.

    OMP_WAIT_POLICY=passive python benchmarks/generation.py models/smollm2 SmolLM2-135M-Instruct

Both write the same 40 tokens after the same prompts, in fp32, in one process and in turn; the best of several rounds
counts, because another process may take a core at any time.
"""

import argparse
import time
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from megatron_ko.eval.generate import continue_tokens
from megatron_ko.eval.load import Loaded, load_run
from megatron_ko.eval.sampling import Sampler, Sampling

NEW = 40
PROMPTS = (
    "The Moon is", "Water is", "The library keeps", "A river does not", "To sort a list", "Every spring the",
    "The capital of France", "Plants use",
)  # fmt: skip


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("native", type=Path)
    parser.add_argument("folder", type=Path, help="the same model for transformers")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    ours = load_run(options.native)
    theirs = AutoModelForCausalLM.from_pretrained(options.folder, dtype=torch.float32).eval()
    theirs.generation_config.eos_token_id = None
    print(f"{'prompts':>7}  {'megatron-ko':>11}  {'transformers':>12}  tokens/s, {torch.get_num_threads()} threads")
    for batch in (1, 8):
        rows = [[ours.tokenizer.eod, *ours.tokenizer.encode(text)] for text in PROMPTS[:batch]]
        length = min(map(len, rows))
        rows = [row[:length] for row in rows]
        best = [0.0, 0.0]
        for _ in range(options.rounds):
            found = []
            for number, write in enumerate((native_tokens, peer_tokens)):
                start = time.perf_counter()
                found.append(write(ours if number == 0 else theirs, rows))
                best[number] = max(best[number], batch * NEW / (time.perf_counter() - start))
            assert found[0] == found[1], "not the same tokens"
        print(f"{batch:>7}  {best[0]:>11.1f}  {best[1]:>12.1f}  {best[0] / best[1]:.2f} times as fast; the same ids")


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
