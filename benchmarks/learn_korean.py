"""Does it learn? A small model on real Korean text, against a unigram model of the same tokens.

Trains a tokenizer, shards and a 4-layer model on one file with the product's own verbs, and prints validation
bits per byte of the model and of a unigram distribution fitted to the training part, over the same positions.

    python benchmarks/learn_korean.py --input docs.jsonl.gz --output DIR [--json]
"""

import argparse
import json
import math
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from megatron_ko.config import load_config
from megatron_ko.data.tokenizer import load_tokenizer
from megatron_ko.data.training.pretrain import build_datasets

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / "configs/runs/learn-korean.yaml"
VOCABULARY = 8192


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--input", type=Path, required=True, help="Korean documents with a 'text' key.")
    parser.add_argument("--output", type=Path, required=True, help="Folder for tokenizer, shards and run.")
    parser.add_argument("--json", action="store_true", help="Print JSON.")
    options = parser.parse_args()
    result = learn(options.input, options.output)
    print(json.dumps(result) if options.json else table(result))


def learn(corpus: Path, folder: Path) -> dict[str, float]:
    """Train on ``corpus`` below ``folder`` and measure. Bits per byte are over the validation part."""
    start = time.monotonic()
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer, prefix, run = folder / "tokenizer", folder / "corpus", folder / "run"
    verb(
        "tokenizer", "train", "--input", corpus, "--model", "unigram", "--vocab-size", VOCABULARY, "--output", tokenizer
    )
    verb("data", "preprocess", "--input", corpus, "--tokenizer", tokenizer, "--output", prefix, "--workers", 2)
    overrides = [f"data.tokenizer={tokenizer}", f"data.sources=[{{prefix: {prefix}}}]", f"run.dir={run}"]
    verb("train", CONFIG, *overrides)
    valid = [json.loads(line) for line in (run / "metrics/valid.jsonl").read_text(encoding="utf-8").splitlines()][-1]
    nats = unigram_nats(overrides)
    return {
        "model_bits_per_byte": valid["bits_per_byte"],
        "unigram_bits_per_byte": valid["bits_per_byte"] * nats / valid["valid_loss"],
        "model_nats_per_token": valid["valid_loss"],
        "unigram_nats_per_token": nats,
        "gain": 1 - valid["valid_loss"] / nats,
        "seconds": time.monotonic() - start,
    }


def verb(*words: object) -> None:
    subprocess.run([sys.executable, "-m", "megatron_ko.cli.main", *map(str, words)], check=True, stdout=sys.stderr)


def unigram_nats(overrides: list[str]) -> float:
    """Cross entropy, in nats a token, of add-one-smoothed training frequencies on the validation labels."""
    config = load_config(CONFIG, overrides)
    tokenizer = load_tokenizer(config.data.tokenizer)
    train_samples = config.training.steps * config.training.global_batch_size
    datasets = build_datasets(config.data, tokenizer, (train_samples, config.eval.samples, 0), config.run.seed)
    seen = np.bincount(labels(datasets.train, train_samples), minlength=VOCABULARY) + 1
    return float(-np.log(seen / seen.sum())[labels(datasets.valid, config.eval.samples)].mean())


def labels(dataset: object, samples: int) -> np.ndarray:
    return np.concatenate([np.asarray(dataset[index]["labels"]) for index in range(samples)])


def table(result: dict[str, float]) -> str:
    rows = [
        ("", "bits/byte", "nats/token", "perplexity"),
        *(
            (name, f"{result[f'{name}_bits_per_byte']:.4f}", f"{nats:.4f}", f"{math.exp(nats):.1f}")
            for name in ("model", "unigram")
            for nats in [result[f"{name}_nats_per_token"]]
        ),
    ]
    lines = [f"{row[0]:<10}" + "".join(f"{cell:>12}" for cell in row[1:]) for row in rows]
    return "\n".join([*lines, f"the model needs {result['gain']:.1%} fewer bits; {result['seconds']:.0f} s in all"])


if __name__ == "__main__":
    main()
