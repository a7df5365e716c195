"""Tokens/s, TFLOP/s, MFU and peak memory of one GPU: `megatron-ko train` against transformers under torch.compile.

The same network, sequences of 4,096 tokens, batch, bf16 with fp32 master weights and fused AdamW; a process each, in
turns. TFLOP/s count what docs/plan.md says; MFU is of the dense bf16 peak of the device.

    python benchmarks/gpu/throughput.py [--models ko-1b frankenstallm-3b] [--micro-batch 2] [--steps 20]

Needs a CUDA device. `--device cpu` runs the same code on a toy, to see that it works; its figures mean nothing.
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

import torch

from megatron_ko.config import ModelConfig, load_model_config
from megatron_ko.parallel.platform import get_platform
from megatron_ko.plan.flops import CONVENTION, flops_per_token

ROOT = Path(__file__).parents[2]
WARM_UP = 5  # steps that are not counted: compilation, and the caching allocator
RUN = """
run: {{dir: {folder}/run, name: throughput}}
model: {{from: {model}}}
precision: {{dtype: bf16, backend: {backend}}}
data: {{tokenizer: {folder}/tokenizer, sources: [{{prefix: {folder}/corpus}}], split: [1, 0, 0],
       sequence_length: {length}}}
optim: {{lr: 1.0e-4, schedule: constant}}
training: {{steps: {steps}, global_batch_size: {batch}, micro_batch_size: {batch}, recompute: {recompute}}}
eval: {{samples: 0}}
checkpoint: {{interval: 1000000}}
launch: {{ranks_per_node: 1}}
"""


@dataclass(frozen=True)
class Measured:
    """The median step of one way to train, in seconds, and its peak memory in bytes."""

    name: str
    seconds: float
    peak_bytes: float


def main() -> None:
    options = parse()
    if options.device == "cuda" and not torch.cuda.is_available():
        sys.exit("throughput.py needs a CUDA device; --device cpu tries the code on a toy")
    if options.peer:
        print(json.dumps(run_transformers(options)))
        return
    print(
        f"{CONVENTION}; {options.length} tokens x {options.micro_batch} sequences a step, recompute {options.recompute}"
    )
    print(f"{'':<44}{'ms/step':>9}{'tokens/s':>10}{'TFLOP/s':>9}{'MFU':>7}{'peak GiB':>10}")
    with tempfile.TemporaryDirectory() as folder:
        prepare(Path(folder))
        for name in options.models:
            model = load_model_config(model_file(name))
            for way in (run_ours(Path(folder), name, options), peer_process(name, options)):
                print(row(name, way, model, options))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["ko-1b", "frankenstallm-3b"], help="Names in configs/models.")
    parser.add_argument("--length", type=int, default=4096, help="Tokens of a sequence.")
    parser.add_argument("--micro-batch", type=int, default=2, help="Sequences of a step.")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--backend", default="auto", help="precision.backend")
    parser.add_argument("--recompute", default="none", choices=("none", "full"))
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--peer", help=argparse.SUPPRESS)
    return parser.parse_args()


def model_file(name: str) -> Path:
    return ROOT / f"configs/models/{name}.yaml"


def prepare(folder: Path) -> None:
    """A generated corpus, a tokenizer and shards: what they hold does not change the time of a step."""
    corpus = folder / "corpus.jsonl"
    generate = [sys.executable, ROOT / "demo/generate.py", "--size", "12MB", "--seed", "1", "--output", corpus]
    subprocess.run(generate, check=True, stdout=sys.stderr)
    verb("cpu", "tokenizer", "train", "--input", corpus, "--model", "byte-bpe", "--vocab-size", 2048,
         "--output", folder / "tokenizer")  # fmt: skip
    verb("cpu", "data", "preprocess", "--input", corpus, "--tokenizer", folder / "tokenizer",
         "--output", folder / "corpus")  # fmt: skip


def verb(device: str, *words: object) -> None:
    command = [sys.executable, "-m", "megatron_ko.cli.main", *map(str, words)]
    subprocess.run(command, check=True, stdout=sys.stderr, env={**os.environ, "MEGATRON_KO_DEVICE": device})


def run_ours(folder: Path, name: str, options: argparse.Namespace) -> Measured:
    path, run = folder / f"{name}.yaml", folder / name
    text = RUN.format(
        folder=folder, model=model_file(name), backend=options.backend, length=options.length, steps=options.steps,
        batch=options.micro_batch, recompute=options.recompute,
    )  # fmt: skip
    path.write_text(text, encoding="utf-8")
    verb(options.device, "train", path, f"run.dir={run}", "logging.console=false")
    lines = [json.loads(line) for line in (run / "metrics/train.jsonl").read_text(encoding="utf-8").splitlines()]
    steady = lines[WARM_UP:]
    return Measured(
        "megatron-ko train",
        statistics.median(line["step_time_s"] for line in steady),
        max(line["memory_peak"] for line in steady),
    )


def peer_process(name: str, options: argparse.Namespace) -> Measured:
    command = [sys.executable, __file__, *sys.argv[1:], "--peer", name]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return Measured(**json.loads(done.stdout.splitlines()[-1]))


def run_transformers(options: argparse.Namespace) -> dict[str, object]:
    """transformers' network in bf16 autocast over fp32 weights, compiled, with PyTorch attention and fused AdamW."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    from peer_models import transformers_model

    device = torch.device(options.device)
    model = load_model_config(model_file(options.peer))
    network = transformers_model(model).to(device)
    if options.recompute == "full":
        network.gradient_checkpointing_enable()
    compiled = torch.compile(network)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, betas=(0.9, 0.95), fused=True)
    shape = (options.micro_batch, options.length)
    tokens = torch.randint(model.vocab_size, shape, generator=torch.Generator().manual_seed(0)).to(device)
    seconds = []
    for _ in range(options.steps):
        started = time.perf_counter()
        with torch.autocast(device.type, torch.bfloat16):
            loss = compiled(input_ids=tokens, labels=tokens).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        loss.item()  # waits for the device
        seconds.append(time.perf_counter() - started)
    peak = get_platform().memory().allocated_peak
    return {"name": "transformers, torch.compile", "seconds": statistics.median(seconds[WARM_UP:]), "peak_bytes": peak}


def row(name: str, way: Measured, model: ModelConfig, options: argparse.Namespace) -> str:
    tokens_per_s = options.length * options.micro_batch / way.seconds
    flops = tokens_per_s * flops_per_token(model, options.length)
    peak = get_platform().peak_flops("bf16")
    mfu = f"{flops / peak:.1%}" if peak else "-"
    return (
        f"{f'{name}: {way.name}':<44}{1e3 * way.seconds:>9.1f}{tokens_per_s:>10.0f}{flops / 1e12:>9.1f}{mfu:>7}"
        f"{way.peak_bytes / 2**30:>10.1f}"
    )


if __name__ == "__main__":
    main()
