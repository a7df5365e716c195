"""One throughput job: a network under `megatron-ko train`, or under transformers with torch.compile.

The same network, sequence length, batch, fp32 master weights, clipping and fused AdamW; bf16, or bf16 autocast. FLOPs
are counted as docs/plan.md says.
"""

import json
import shutil
import statistics
import sys
from collections.abc import Sequence
from typing import Any

import torch

from gpu.step_options import ROOT, Given, given
from gpu.steps import NETWORKS, PEERS, WARM_UP, Network
from gpu.transformers_peer import measure as measure_transformers
from gpu.worker import train
from gpu.workers import steps_of
from megatron_ko.config import RunConfig, load_config
from megatron_ko.parallel.platform import get_platform
from megatron_ko.plan.flops import CONVENTION, flops_per_token

RUN = """
run: {{dir: {folder}/run, name: throughput}}
model: {{from: {root}/configs/models/{model}.yaml}}
precision: {{dtype: bf16}}
data: {{tokenizer: {data}/tokenizer, sources: [{{prefix: {data}/corpus}}], split: [1, 0, 0], sequence_length: {length}}}
optim: {{lr: 1.0e-4, schedule: constant}}
training: {{steps: {steps}, global_batch_size: {batch}, micro_batch_size: {micro_batch}}}
eval: {{samples: 0}}
checkpoint: {{interval: 0}}
logging: {{console: false, tensorboard: false}}
launch: {{ranks_per_node: 1}}
"""
PROFILED_STEPS = 2


def main() -> None:
    step = given()
    config = write_run(step)
    measured = measure_peer(step, config) if step.options["way"] in PEERS else measure_ours(step)
    tokens = config.data.sequence_length * config.training.global_batch_size / measured["seconds"]
    flops = tokens * flops_per_token(config.model, config.data.sequence_length)
    peak = get_platform().peak_flops("bf16")
    step.tell(
        {
            **measured,
            "convention": CONVENTION,
            "length": config.data.sequence_length,
            "batch": config.training.global_batch_size,
            "tokens_per_s": tokens,
            "tflops": flops / 1e12,
            "peak_share": flops / peak if peak else None,
        }
    )


def write_run(step: Given) -> RunConfig:
    """The run file of a job, and what it says."""
    options = step.options
    network = NETWORKS[options["network"]] if "network" in options else _toy(options)
    micro_batch = fitting(network.micro_batch, step.device)
    text = RUN.format(
        folder=step.folder, root=ROOT, data=step.data, model=network.model, length=network.length,
        steps=options["steps"], micro_batch=network.micro_batch,
        batch=micro_batch * options.get("accumulate", 1),
    )  # fmt: skip
    path = step.folder / "run.yaml"
    path.write_text(text, encoding="utf-8")
    return load_config(path, words_of(step))


def fitting(micro_batch: int, device: str) -> int:
    """What steps.py says is made for 141 GiB; a device with less gets a quarter."""
    if device == "cuda" and torch.cuda.get_device_properties(0).total_memory < 100 * 2**30:
        return max(1, micro_batch // 4)
    return micro_batch


def _toy(options: dict[str, Any]) -> Network:
    return Network(options["model"], options["micro_batch"], length=options["length"])


def words_of(step: Given) -> list[str]:
    """Values laid over the run; the last steps but one go through the profiler where that is asked for."""
    start = step.options["steps"] - PROFILED_STEPS
    profile = [f"logging.profile.start={start}", f"logging.profile.steps={PROFILED_STEPS}"]
    return [*step.options["words"], *(profile if step.options.get("profile") else [])]


def measure_ours(step: Given) -> dict[str, Any]:
    """Train in this process; the median of the steps after the warm-up and before the profiler."""
    code = train(step.folder / "run.yaml", words_of(step))
    if code:
        sys.exit(code)
    run = step.folder / "run"
    profiled = PROFILED_STEPS + 1 if step.options.get("profile") else 0
    steps = steps_of(run)
    counted = steps[WARM_UP : len(steps) - profiled]
    return {
        "way": "megatron-ko train",
        "seconds": statistics.median(record["step_time_s"] for record in counted),
        "peak_gib": max(record["memory_peak"] for record in counted) / 2**30,
        "loss": steps[-1]["loss"],
        "attention": steps[-1].get("attention"),
        "profile": keep_profile(step),
    }


def keep_profile(step: Given) -> dict[str, Any] | None:
    """What the profiler summed up; its table stays beside the result, and the trace with the run."""
    folder = step.folder / "run/profile"
    if not folder.is_dir():
        return None
    shutil.copy(folder / "table.txt", step.folder / "profile.txt")
    summary: dict[str, Any] = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    return summary


def measure_peer(step: Given, config: RunConfig) -> dict[str, Any]:
    """transformers, with Liger's kernels or its own. It has no layers of different windows: there all are full."""
    model = config.model
    seen_alike = model.windows is None or len(set(model.windows)) == 1
    peer = model if seen_alike else model.model_copy(update={"windows": None})
    seconds, peak = measure_transformers(
        peer, step.device, (config.training.micro_batch_size, config.data.sequence_length),
        step.options["steps"], with_liger=step.options["way"] == PEERS[1],
    )  # fmt: skip
    note = "" if seen_alike else "full attention in all layers"
    return {
        "way": step.options["way"],
        "seconds": median_of(seconds),
        "peak_gib": peak / 2**30,
        "note": note,
    }


def median_of(seconds: Sequence[float]) -> float:
    """Of the steps that count."""
    return statistics.median(seconds[WARM_UP:])


if __name__ == "__main__":
    main()
