"""A model of 1.2 B parameters to a Hugging Face folder: speed against a plain copy, and the memory that it takes.

    python benchmarks/export.py
    python benchmarks/export.py --model configs/models/smollm2-135m.yaml --layers 30

Weights are random, in bf16. The export runs in a process of its own, whose peak memory is told by the system; it counts
files that are mapped, too. Everything is written to a temporary folder (--folder) and removed.
"""

import argparse
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import orjson
import torch

from megatron_ko.artifacts.native import MODEL_FILE, WEIGHTS, find_pretrained
from megatron_ko.config import ModelConfig, dump, load_model_config
from megatron_ko.convert import hf_export
from megatron_ko.convert.families import rules_of
from megatron_ko.convert.gates import Depth
from megatron_ko.convert.mapping import blocks, native_shapes
from megatron_ko.convert.native import TensorBlock, write_native
from megatron_ko.convert.staging import write_manifest
from megatron_ko.convert.verify import ModelPair, Proof
from megatron_ko.plan.params import count_parameters

ROOT = Path(__file__).parents[1]
MEMORY_LIMIT = 6 << 30


def main() -> None:
    """Write, export, copy, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=ROOT / "configs/models/ko-1b.yaml")
    parser.add_argument("--layers", type=int, default=23, help="instead of the model's own")
    parser.add_argument("--folder", type=Path, help="for temporary files, of twice the size of the model")
    parser.add_argument("--proof", choices=("quick", "full"), default="full")
    parser.add_argument("--export", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.export:
        export(options.export, options.proof)
        return
    with tempfile.TemporaryDirectory(prefix="export-", dir=options.folder) as temporary:
        folder = Path(temporary)
        model = load_model_config(options.model).model_copy(update={"num_layers": options.layers})
        needed, free = 5 * count_parameters(model).total, shutil.disk_usage(folder).free
        if free < 2 * needed:
            sys.exit(f"{folder} has {free / 1e9:.1f} GB free; this needs {2 * needed / 1e9:.1f}")
        write_random(folder / "native", model)
        command = [sys.executable, __file__, "--export", str(folder), "--proof", options.proof]
        done = subprocess.run(
            command, stdout=subprocess.PIPE, check=True, env={**os.environ, "MEGATRON_KO_DEVICE": "cpu"}
        )
        measured = orjson.loads(done.stdout.splitlines()[-1])
        copied = copy(folder)
        size = sum(path.stat().st_size for path in (folder / "hf").glob("*.safetensors"))
    tell(f"{options.model.stem} with {options.layers} layers", count_parameters(model).total, size, measured, copied)


def write_random(folder: Path, model: ModelConfig) -> None:
    """A native model; its blocks are cut from one pool of random numbers."""
    rules = rules_of(model)
    pool = (torch.randn(1 << 24, generator=torch.Generator().manual_seed(0)) * model.init_std).bfloat16()

    def make(number: int, shape: tuple[int, ...]) -> torch.Tensor:
        size = torch.Size(shape).numel()
        values = pool.roll(number * 7919).repeat(-(-size // len(pool)))[:size].reshape(shape)
        return values + 1 if len(shape) == 1 else values

    parts = [
        TensorBlock(
            block.native,
            block.index,
            block.mapping.shape,
            torch.bfloat16,
            lambda n=n, s=block.mapping.shape: make(n, s),
        )
        for n, block in enumerate(blocks(rules, model))
    ]
    (folder / WEIGHTS).mkdir(parents=True)
    write_native(folder / WEIGHTS, parts, native_shapes(rules, model))
    (folder / MODEL_FILE).write_text(dump(model), encoding="utf-8")
    write_manifest(folder)


def export(folder: Path, depth: Depth) -> None:
    """In a process of its own: seconds of writing and of proving, bytes of memory at most."""
    honest, proving = hf_export.prove, []

    def timed(pair: ModelPair, depth: Depth) -> Proof:
        proving.append((time.perf_counter(), peak_memory()))
        return honest(pair, depth)

    hf_export.prove = timed
    source = find_pretrained(folder / "native")
    start = time.perf_counter()
    proof = hf_export.export_hf(source, folder / "hf", depth=depth)
    end = time.perf_counter()
    ((middle, peak_writing),) = proving
    assert proof.logits is not None
    print(
        orjson.dumps(
            {
                "writing_s": middle - start,
                "proving_s": end - middle,
                "peak_writing": peak_writing,
                "peak": peak_memory(),
                "gates": sum(gate.ok for gate in proof.gates),
                "difference": proof.logits.max_difference,
            }
        ).decode()
    )


def peak_memory() -> int:
    """Most bytes that this process has had in memory."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def copy(folder: Path) -> float:
    """Seconds that copying the native weights takes."""
    start = time.perf_counter()
    shutil.copytree(folder / "native" / WEIGHTS, folder / "copy")
    return time.perf_counter() - start


def tell(name: str, parameters: int, size: int, measured: dict[str, float], copied: float) -> None:
    """Print the table, and say whether the memory was enough."""
    rows = (
        ("plain copy", copied, None),
        ("export, without proof", measured["writing_s"], measured["peak_writing"]),
        ("proof", measured["proving_s"], measured["peak"]),
    )
    print(f"{name}: {parameters:,} parameters, {size / 1e9:.2f} GB in bf16\n")
    print(f"{'':<36}{'s':>8}{'MB/s':>8}{'peak GiB':>10}")
    for label, seconds, peak in rows:
        memory = f"{peak / 2**30:.2f}" if peak else "-"
        print(f"{label:<36}{seconds:>8.1f}{size / 1e6 / seconds:>8.0f}{memory:>10}")
    verdict = "within" if measured["peak"] < MEMORY_LIMIT else "ABOVE"
    print(f"\n{measured['gates']:.0f} gates passed, logits differ by at most {measured['difference']:.1e}")
    print(f"peak memory {measured['peak'] / 2**30:.2f} GiB, {verdict} {MEMORY_LIMIT / 2**30:.0f} GiB")


if __name__ == "__main__":
    main()
