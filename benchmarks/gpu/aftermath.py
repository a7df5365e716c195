"""What comes after steps: how long training stands still while it saves, and how fast the saved model generates."""

import shutil
import sys
import time
from pathlib import Path
from typing import Any

from gpu.step_options import ROOT, given
from gpu.worker import train
from gpu.workers import steps_of
from megatron_ko.artifacts.checkpoints import name_of, read_manifest
from megatron_ko.eval.generate import continue_tokens
from megatron_ko.eval.load import Loaded, load_run
from megatron_ko.eval.sampling import Sampler, Sampling
from megatron_ko.parallel.platform import get_platform

RUN = """
run: {{dir: {folder}/run}}
model: {{from: {root}/configs/models/{model}.yaml}}
data: {{tokenizer: {data}/tokenizer, sources: [{{prefix: {data}/corpus}}], split: [1, 0, 0], sequence_length: {length}}}
optim: {{lr: 1.0e-4, schedule: constant}}
training: {{steps: 4, global_batch_size: 1, micro_batch_size: 1}}
eval: {{samples: 0}}
checkpoint: {{interval: 3, keep: 1}}
logging: {{console: false, tensorboard: false}}
launch: {{ranks_per_node: 1}}
"""
SAVED = 3  # the step after which training goes on
PROMPT = 64  # tokens


def main() -> None:
    step = given()
    options = step.options
    path = step.folder / "run.yaml"
    text = RUN.format(
        folder=step.folder, root=ROOT, data=step.data, model=options["model"], length=options.get("length", 4096)
    )
    path.write_text(text, encoding="utf-8")
    if code := train(path, ()):
        sys.exit(code)
    run = step.folder / "run"
    save = stall_of(run)
    step.tell({"model": options["model"], "save": save})
    loaded = load_run(run)
    rates = [generation(loaded, batch, options["new_tokens"]) for batch in (1, 8)]
    step.tell({"model": options["model"], "save": save, "generation": rates})
    shutil.rmtree(run)


def stall_of(run: Path) -> dict[str, float]:
    """Seconds between the end of the saved step and the begin of the next one."""
    before, after = (record for record in steps_of(run) if record["step"] in (SAVED, SAVED + 1))
    seconds = after["time"] - after["step_time_s"] - before["time"]
    size = read_manifest(run / "checkpoints" / name_of(SAVED + 1)).total_bytes
    return {"stall_s": seconds, "bytes": size, "mb_per_s": size / 1e6 / seconds}


def generation(loaded: Loaded, batch: int, new_tokens: int) -> dict[str, Any]:
    """Tokens/s of greedy continuation in a batch, the prompts' own forward pass included; a warm-up comes first."""
    prompts = [[loaded.tokenizer.eod, *range(3, PROMPT + 2)]] * batch
    for count in (4, new_tokens):
        sampling = Sampling(max_new_tokens=count, temperature=0)
        get_platform().synchronize()
        started = time.perf_counter()
        made = sum(len(chosen) for chosen in continue_tokens(loaded, prompts, Sampler(sampling, batch), count))
        get_platform().synchronize()
        seconds = time.perf_counter() - started
    return {"batch": batch, "new_tokens": new_tokens, "tokens_per_s": made / seconds}


if __name__ == "__main__":
    main()
