"""How fast is a step? `megatron-ko train` against a hand-written PyTorch loop and transformers' Trainer.

The same network, batch, sequences, precision (fp32) and threads; one process each, in turns, on an otherwise idle
machine. A figure is the median of the steady steps of all rounds. Also measures the time from the command to the first
finished step.

    python benchmarks/train_step.py [--steps 30] [--rounds 3] [--threads 1] [--json]
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
WARM_UP = 5  # steps of every process that are not counted
TOKENS = 8 * 256

CONFIG = """
run: {{dir: {folder}/run, name: benchmark}}
model: {{num_layers: 4, hidden_size: 256, ffn_hidden_size: 688, num_attention_heads: 8, num_query_groups: 4,
        vocab_size: 8192, max_position_embeddings: 256, tie_embeddings: true}}
precision: {{dtype: fp32}}
data: {{tokenizer: {folder}/tokenizer, sources: [{{prefix: {folder}/corpus}}], split: [1, 0, 0], sequence_length: 256}}
optim: {{lr: 1.0e-3, schedule: constant}}
training: {{steps: {steps}, global_batch_size: 8, micro_batch_size: 8}}
eval: {{samples: 0}}
checkpoint: {{interval: 1000000}}
launch: {{ranks_per_node: 1, threads_per_rank: {threads}}}
"""


@dataclass
class Measured:
    """One way to train: seconds of every counted step, and its first and last loss."""

    name: str
    seconds: list[float]
    first_loss: float = 0.0
    last_loss: float = 0.0

    @property
    def tokens_per_s(self) -> float:
        """Tokens a second, from the median step."""
        return TOKENS / statistics.median(self.seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=30, help="Steps of one process.")
    parser.add_argument("--rounds", type=int, default=3, help="Processes of each kind, in turns.")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads.")
    parser.add_argument("--json", action="store_true", help="Print JSON.")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        config = prepare(Path(folder), options.steps, options.threads)
        ours = Measured("megatron-ko train", [])
        hand, trainer = Measured("hand-written PyTorch loop", []), Measured("transformers Trainer", [])
        starts = []
        for number in range(options.rounds):
            starts.append(run_ours(config, Path(folder) / f"run{number}", ours))
            run_peer("hand", config, options.threads, hand)
            run_peer("trainer", config, options.threads, trainer)
    result = {
        "tokens_per_s": {way.name: way.tokens_per_s for way in (ours, hand, trainer)},
        "to_hand_written": ours.tokens_per_s / hand.tokens_per_s,
        "to_trainer": ours.tokens_per_s / trainer.tokens_per_s,
        "seconds_to_first_step": statistics.median(starts),
    }
    print(json.dumps(result) if options.json else table((ours, hand, trainer), result))


def prepare(folder: Path, steps: int, threads: int) -> Path:
    """A corpus, a tokenizer, shards and a configuration."""
    corpus = folder / "corpus.jsonl"
    generate = [sys.executable, ROOT / "demo/generate.py", "--size", "3MB", "--seed", "1", "--output", corpus]
    subprocess.run(generate, check=True, stdout=sys.stderr)
    tokenizer = folder / "tokenizer"
    verb("tokenizer", "train", "--input", corpus, "--model", "byte-bpe", "--vocab-size", 8192, "--output", tokenizer)
    verb("data", "preprocess", "--input", corpus, "--tokenizer", tokenizer, "--output", folder / "corpus")
    path = folder / "run.yaml"
    path.write_text(CONFIG.format(folder=folder, steps=steps, threads=threads), encoding="utf-8")
    return path


def verb(*words: object) -> None:
    command = [sys.executable, "-m", "megatron_ko.cli.main", *map(str, words)]
    subprocess.run(command, check=True, stdout=sys.stderr, env=environment())


def environment() -> dict[str, str]:
    return {**os.environ, "MEGATRON_KO_DEVICE": "cpu"}


def run_ours(config: Path, run: Path, measured: Measured) -> float:
    """Train once; returns the seconds from the command to the first line in the metric store."""
    started = time.time()
    verb("train", config, f"run.dir={run}")
    lines = [json.loads(line) for line in (run / "metrics/train.jsonl").read_text(encoding="utf-8").splitlines()]
    measured.seconds += [line["step_time_s"] for line in lines[WARM_UP:]]
    measured.first_loss, measured.last_loss = lines[0]["loss"], lines[-1]["loss"]
    return float(lines[0]["time"] - started)


def run_peer(kind: str, config: Path, threads: int, measured: Measured) -> None:
    command = [sys.executable, str(ROOT / "benchmarks/peers.py"), kind, str(config), str(threads)]
    env = {**environment(), "OMP_NUM_THREADS": str(threads), "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=env)
    found = json.loads(done.stdout.splitlines()[-1])
    measured.seconds += found["seconds"][WARM_UP:]
    measured.first_loss, measured.last_loss = found["first"], found["last"]


def table(ways: tuple[Measured, ...], result: dict[str, object]) -> str:
    ours = ways[0].tokens_per_s
    lines = [f"{'':<28}{'ms/step':>10}{'tokens/s':>10}{'ours is':>10}{'first loss':>12}{'last loss':>11}"]
    lines += [
        f"{way.name:<28}{1e3 * TOKENS / way.tokens_per_s:>10.1f}{way.tokens_per_s:>10.0f}"
        f"{ours / way.tokens_per_s:>9.2f}x{way.first_loss:>12.4f}{way.last_loss:>11.4f}"
        for way in ways
    ]
    lines.append(f"command to first step: {result['seconds_to_first_step']:.1f} s")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
