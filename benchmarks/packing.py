"""How full are packed samples, and what does packing give? Conversations in samples of 4,096, and SFT against trl.

The conversations are 11,823 pairs of a question and an answer where they are, else those of the demo; and 50,000
lengths drawn from a log-normal distribution (median 320, sigma 0.8; 8 % are eight times as long; at most 4,096).

SFT: the same network (4 layers of 256, 8,192 ids), the same conversations, the same CPU threads, fp32, in turns.
* trl's SFTTrainer with packing (best fit decreasing, restarting positions), on LlamaForCausalLM.
* The same without packing, every conversation padded to the length of a sample.
Tokens are trained tokens: of answers alone.

    python benchmarks/packing.py [--steps 12] [--rounds 2] [--threads 2] [--json]
"""

import argparse
import gzip
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from megatron_ko.data.tokens.marked import MarkedReader
from megatron_ko.data.training.packing import plan_packs

ROOT = Path(__file__).parents[1]
PAIRS = Path(os.environ.get("MEGATRON_KO_SHARED_DATA", ROOT.parent / "shared/data")) / "chatbot_pairs.jsonl.gz"
CAPACITY, LENGTH, WARM_UP = 4096, 1024, 2
CONFIG = """
run: {{dir: {folder}/run, seed: 1}}
model: {{num_layers: 4, hidden_size: 256, ffn_hidden_size: 704, num_attention_heads: 4, num_query_groups: 2,
         vocab_size: 8192, max_position_embeddings: 1024}}
precision: {{dtype: fp32}}
data: {{tokenizer: {folder}/tokenizer, sources: [{{prefix: {folder}/chat}}], split: [1, 0, 0], sequence_length: 1024}}
objective: {{kind: sft}}
optim: {{lr: 1.0e-4, schedule: constant}}
training: {{steps: {steps}, global_batch_size: 4, micro_batch_size: 4}}
eval: {{samples: 0}}
checkpoint: {{interval: 0}}
launch: {{ranks_per_node: 1, threads_per_rank: {threads}}}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=12, help="Steps of one process; 0: only how full samples are.")
    parser.add_argument("--rounds", type=int, default=2, help="Processes of each kind, in turns.")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads.")
    parser.add_argument("--json", action="store_true", help="Print JSON.")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        config = prepare(Path(name), options)
        chat = MarkedReader(Path(name) / "chat").positions()
        result = {
            "full": {"conversations": fullness(chat), "log-normal": fullness(drawn())},
            "trained_tokens_per_s": {},
        }
        found: dict[str, list[float]] = {"megatron-ko train": [], "trl, packed": [], "trl, padded": []}
        for _ in range(options.rounds if options.steps else 0):
            found["megatron-ko train"].append(run_ours(config))
            for kind in ("packed", "padded"):
                found[f"trl, {kind}"].append(run_peer(kind, config, options.threads))
    if options.steps:
        result["trained_tokens_per_s"] = {way: statistics.median(rates) for way, rates in found.items()}
    print(json.dumps(result) if options.json else table(result))


def prepare(folder: Path, options: argparse.Namespace) -> Path:
    """Conversations, a tokenizer with a template, marked tokens and a configuration."""
    source = folder / "chat.jsonl"
    if PAIRS.is_file():
        with gzip.open(PAIRS) as packed:
            source.write_bytes(packed.read())
    else:
        source.write_bytes((ROOT / "demo/chat/conversations.jsonl").read_bytes() * 40)
    corpus, tokenizer = folder / "corpus.jsonl", folder / "tokenizer"
    generate = [sys.executable, ROOT / "demo/generate.py", "--size", "3MB", "--seed", "1", "--output", corpus]
    subprocess.run(generate, check=True, stdout=sys.stderr)
    verb("tokenizer", "train", "--input", corpus, "--model", "byte-bpe", "--vocab-size", 8192, "--output", tokenizer)
    verb("tokenizer", "chat", tokenizer, "--set", "chatml")
    verb(
        "data", "chat", "--input", source, "--tokenizer", tokenizer, "--output", folder / "chat",
        "--sequence-length", LENGTH,
    )  # fmt: skip
    path = folder / "run.yaml"
    path.write_text(CONFIG.format(folder=folder, steps=options.steps, threads=options.threads), encoding="utf-8")
    return path


def drawn() -> np.ndarray:
    """Positions [n] of rows as in chat data."""
    random = np.random.default_rng(0)
    lengths = np.exp(random.normal(np.log(320), 0.8, 50_000)) * np.where(random.random(50_000) < 0.08, 8, 1)
    return np.clip(lengths, 8, CAPACITY).astype(np.int64)


def fullness(positions: np.ndarray) -> float:
    """Share of the positions of all packs of an epoch that hold a token of a row."""
    return float(positions.sum() / (len(plan_packs(positions, CAPACITY, seed=1, epoch=0)) * CAPACITY))


def verb(*words: object) -> None:
    command = [sys.executable, "-m", "megatron_ko.cli.main", *map(str, words)]
    subprocess.run(command, check=True, stdout=sys.stderr, env={**os.environ, "MEGATRON_KO_DEVICE": "cpu"})


def run_ours(config: Path) -> float:
    """Trained tokens a second."""
    run = Path(tempfile.mkdtemp(dir=config.parent))
    verb("train", config, f"run.dir={run}")
    lines = [json.loads(line) for line in (run / "metrics/train.jsonl").read_text(encoding="utf-8").splitlines()]
    tokens = lines[-1]["tokens"] - lines[WARM_UP - 1]["tokens"]
    return float(tokens / sum(line["step_time_s"] for line in lines[WARM_UP:]))


def run_peer(kind: str, config: Path, threads: int) -> float:
    """Trained tokens a second of trl."""
    command = [sys.executable, str(ROOT / "benchmarks/packing_peers.py"), kind, str(config), str(threads)]
    env = {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONWARNINGS": "ignore", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=env)
    return float(json.loads(done.stdout.splitlines()[-1])["trained_tokens_per_s"])


def table(result: dict[str, dict[str, float]]) -> str:
    lines = [f"samples of {CAPACITY:,}, full to: " + ", ".join(f"{k} {v:.2%}" for k, v in result["full"].items())]
    lines.append("with text as filler: 100.00% (data.filler)")
    rates = result["trained_tokens_per_s"]
    if rates:
        ours = rates["megatron-ko train"]
        lines.append(f"{'SFT, samples of 1,024':<28}{'trained tokens/s':>18}{'ours is':>10}")
        lines += [f"{way:<28}{rate:>18,.0f}{ours / rate:>9.2f}x" for way, rate in rates.items()]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
