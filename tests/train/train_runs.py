"""Starting real training runs on a tiny corpus, and reading what they wrote."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
TIMEOUT = 120.0

CONFIG = """
run: {{dir: run, name: tiny, seed: 7}}
model: {{num_layers: 4, hidden_size: 32, ffn_hidden_size: 64, num_attention_heads: 4, num_query_groups: 2,
         vocab_size: 600, max_position_embeddings: 64, tie_embeddings: true}}
precision: {{dtype: fp32}}
data: {{tokenizer: {folder}/tokenizer, sources: [{{prefix: {folder}/corpus}}], split: [90, 10, 0], sequence_length: 32}}
optim: {{lr: 3.0e-3, schedule: wsd, warmup_steps: 1}}
training: {{steps: 30, global_batch_size: 8, micro_batch_size: 2}}
eval: {{interval: 10, samples: 10}}
checkpoint: {{interval: 10, keep: 2}}
logging: {{tensorboard: false}}
"""


@dataclass(frozen=True)
class Run:
    """One run directory and the command that trains in it."""

    config: Path
    folder: Path
    overrides: Sequence[str] = ()

    def command(self, *more: str) -> list[str]:
        """The command line."""
        own = (str(self.config), f"run.dir={self.folder}", *self.overrides, *more)
        return [sys.executable, "-m", "megatron_ko.cli.main", "train", *own]

    def train(self, *more: str) -> subprocess.CompletedProcess[str]:
        """Train to the end."""
        return subprocess.run(
            self.command(*more), capture_output=True, text=True, timeout=TIMEOUT, env=environment(), check=False
        )

    def train_until(self, step: int, number: signal.Signals, *more: str) -> subprocess.CompletedProcess[str]:
        """Train, and send a signal to the parent once a step is in the metric store."""
        process = subprocess.Popen(
            self.command(*more), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment()
        )
        deadline = time.monotonic() + TIMEOUT
        while process.poll() is None and self.last_step() < step and time.monotonic() < deadline:
            time.sleep(0.01)
        assert process.poll() is None, process.communicate()[1]
        process.send_signal(number)
        out, err = process.communicate(timeout=TIMEOUT)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def lines(self, name: str) -> list[dict[str, Any]]:
        """Whole lines of a metric file."""
        path = self.folder / "metrics" / f"{name}.jsonl"
        text = path.read_text(encoding="utf-8").rpartition("\n")[0] if path.exists() else ""
        return [json.loads(line) for line in text.splitlines()]

    def last_step(self) -> int:
        """Newest step in the metric store."""
        return max((line["step"] for line in self.lines("train")), default=0)

    def losses(self) -> list[tuple[int, str]]:
        """(step, exact loss) of every line."""
        return [(line["step"], line["loss_hex"]) for line in self.lines("train")]

    def valid(self) -> list[tuple[int, str]]:
        """(step, exact loss) of every validation."""
        return [(line["step"], line["valid_loss_hex"]) for line in self.lines("valid")]

    @property
    def checkpoints(self) -> list[str]:
        """Names in the checkpoint folder."""
        folder = self.folder / "checkpoints"
        return sorted(entry.name for entry in folder.iterdir()) if folder.exists() else []


def environment() -> dict[str, str]:
    """One thread a rank: tests share the machine."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "MEGATRON_KO_DEVICE": "cpu"}
