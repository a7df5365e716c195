"""What does MXFP8 do to the loss, and what does emulating it cost?

Trains one toy network on the demo corpus with every number format, from the same weights and on the same samples, and
writes the comparison into docs/precision.md and docs/images/precision-loss.png. Runs that are finished are not
repeated: the program may be stopped and started again.

    python benchmarks/precision.py --folder DIR [--steps 400] [--threads 1]
"""

import argparse
import json
import re
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from precision_cost import measure_cost
from record import conditions

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "demo"))
from generate import write  # noqa: E402

PAGE, PLOT = ROOT / "docs/precision.md", ROOT / "docs/images/precision-loss.png"
BEGIN, END = "<!-- measured -->", "<!-- end -->"
CORPUS_BYTES, VOCABULARY = 8_000_000, 2048
SMOOTHING = 25  # steps

CONFIG = """
run: {{dir: {folder}/run, name: precision}}
model: {{num_layers: 4, hidden_size: 128, ffn_hidden_size: 384, num_attention_heads: 4, num_query_groups: 2,
        head_dim: 32, vocab_size: {vocabulary}, max_position_embeddings: 128, tie_embeddings: true}}
data: {{tokenizer: {folder}/tokenizer, sources: [{{prefix: {folder}/corpus}}], split: [95, 5, 0], sequence_length: 128}}
optim: {{lr: 2.0e-3, schedule: cosine, warmup_steps: 40, weight_decay: 0.1}}
training: {{steps: {steps}, global_batch_size: 8, micro_batch_size: 8}}
eval: {{interval: {steps}, samples: 256}}
checkpoint: {{interval: 100, keep: 1}}
logging: {{tensorboard: false}}
launch: {{ranks_per_node: 1, threads_per_rank: {threads}}}
"""
TOKENS = 8 * 128
EMULATED = ("precision.dtype=bf16", "precision.recipe=mxfp8", "precision.mxfp8.emulate=true")
BASELINE = "bf16"
FORMATS = {
    "fp32": ("precision.dtype=fp32",),
    BASELINE: ("precision.dtype=bf16",),
    "mxfp8 e4m3": EMULATED,
    "mxfp8 hybrid": (*EMULATED, "precision.fp8_format=hybrid"),
    "mxfp8 e4m3, scales down": (*EMULATED, "precision.mxfp8.scale_rounding=down"),
}
COLOURS = dict(zip(FORMATS, ("#222222", "#1f77b4", "#2ca02c", "#d62728", "#ff7f0e"), strict=True))
SEEDS = (11, 12, 13)


@dataclass(frozen=True)
class Trained:
    """What the runs of one format wrote, one row a seed.

    Attributes:
        losses: [seeds, steps], training loss.
        valid: [seeds], validation loss at the end.
        bits: [seeds], the same in bits a byte.
        tokens_per_s: median over all steps.
    """

    losses: np.ndarray
    valid: np.ndarray
    bits: np.ndarray
    tokens_per_s: float

    def smooth(self) -> np.ndarray:
        """Moving average of the training loss."""
        kernel = np.ones(SMOOTHING) / SMOOTHING
        return np.stack([np.convolve(row, kernel, mode="valid") for row in self.losses])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="Corpus, tokenizer and runs.")
    parser.add_argument("--steps", type=int, default=400, help="Steps of every run.")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads.")
    options = parser.parse_args()
    config = prepare(options.folder.resolve(), options.steps, options.threads)
    runs = {name: train(config, name, overrides) for name, overrides in FORMATS.items()}
    draw(runs)
    command = f"python benchmarks/precision.py --folder DIR --steps {options.steps} --threads {options.threads}"
    costs = measure_cost(options.threads)
    section = f"{conditions()},\n`{command}`\n\n{loss_table(runs)}\n\n{costs}"
    page = PAGE.read_text(encoding="utf-8")
    before, rest = page.split(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}\n{section}\n{END}{rest.split(END)[1]}", encoding="utf-8")
    print(section)


def prepare(folder: Path, steps: int, threads: int) -> Path:
    """Corpus, tokenizer and shards, once; the configuration, always."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer, corpus = folder / "tokenizer", folder / "corpus.jsonl"
    if not corpus.exists():
        write(corpus, CORPUS_BYTES, seed=7)
    if not tokenizer.exists():
        words = ("--model", "unigram", "--vocab-size", VOCABULARY, "--output", tokenizer)
        verb("tokenizer", "train", "--input", corpus, *words)
    if not (folder / "corpus.idx").exists():
        verb("data", "preprocess", "--input", corpus, "--tokenizer", tokenizer, "--output", folder / "corpus")
    config = folder / "run.yaml"
    config.write_text(
        CONFIG.format(folder=folder, vocabulary=VOCABULARY, steps=steps, threads=threads), encoding="utf-8"
    )
    return config


def verb(*words: object) -> None:
    subprocess.run([sys.executable, "-m", "megatron_ko.cli.main", *map(str, words)], check=True, stdout=sys.stderr)


def train(config: Path, name: str, overrides: Sequence[str]) -> Trained:
    steps, valid = [], []
    for seed in SEEDS:
        run = config.parent / f"{re.sub('[ ,]+', '-', name)}-{seed}"
        verb("train", config, f"run.dir={run}", f"run.seed={seed}", *overrides)
        steps.append(read(run / "metrics/train.jsonl"))
        valid.append(read(run / "metrics/valid.jsonl")[-1])
    return Trained(
        losses=np.array([[step["loss"] for step in lines] for lines in steps]),
        valid=np.array([line["valid_loss"] for line in valid]),
        bits=np.array([line["bits_per_byte"] for line in valid]),
        tokens_per_s=statistics.median(step["tokens_per_s"] for lines in steps for step in lines),
    )


def read(path: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def loss_table(runs: dict[str, Trained]) -> str:
    """Losses at the end, and their distance to bf16 with the same seed."""
    base = runs[BASELINE]
    lines = [
        "| | training loss | against bf16 | validation loss | against bf16 | bits/byte | tokens/s |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, run in runs.items():
        final = run.smooth()[:, -1]
        lines.append(
            f"| {name} | {final.mean():.4f} | {spread(final - base.smooth()[:, -1])} | {run.valid.mean():.4f} "
            f"| {spread(run.valid - base.valid)} | {run.bits.mean():.4f} | {run.tokens_per_s:,.0f} |"
        )
    note = (
        f"{base.losses.shape[1]} steps of {TOKENS:,} tokens. Losses are in nats a token, means of {len(SEEDS)} seeds, "
        f"those of training also of the last {SMOOTHING} steps; in brackets the lowest and the highest of the seeds. "
        "The runs took place one after another: their speeds are comparable only roughly."
    )
    return "\n".join([*lines, "", note])


def spread(differences: np.ndarray) -> str:
    if not differences.any():
        return "0"
    return f"{differences.mean():+.4f} ({differences.min():+.4f} to {differences.max():+.4f})"


def draw(runs: dict[str, Trained]) -> None:
    """Mean loss curves; below them the distance to bf16 with the same seed, mean and extremes."""
    figure = Figure(figsize=(9, 7), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    base = runs[BASELINE].smooth()
    at = np.arange(SMOOTHING, SMOOTHING + base.shape[1])
    for name, run in runs.items():
        difference = run.smooth() - base
        above.plot(at, run.smooth().mean(0), label=name, color=COLOURS[name], linewidth=1.2)
        below.plot(at, difference.mean(0), color=COLOURS[name], linewidth=1.2)
        below.fill_between(at, difference.min(0), difference.max(0), color=COLOURS[name], alpha=0.12, linewidth=0)
    above.set_ylabel("training loss, nats a token")
    above.legend(fontsize=8)
    above.set_title(f"Emulated MXFP8 against bf16: means of {len(SEEDS)} seeds and {SMOOTHING} steps", fontsize=10)
    below.set_ylabel("difference to bf16")
    below.set_xlabel("step")
    for axes in (above, below):
        axes.grid(alpha=0.3)
    PLOT.parent.mkdir(exist_ok=True)
    figure.savefig(PLOT)


if __name__ == "__main__":
    main()
