"""Starting real training runs on a tiny corpus, and reading what they wrote.

A run is started by the function behind the verb, in a forked process: the same as the command without the seconds that
importing PyTorch takes. ``Run.command`` is the command itself.
"""

import contextlib
import json
import multiprocessing
import os
import platform
import resource
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import Any

import torch
import typer
from patience import PATIENCE

from megatron_ko.cli.train import train
from megatron_ko.data.tokenizer import TokenizerOptions, train_tokenizer
from megatron_ko.data.tokens.preprocess import PreprocessOptions, preprocess
from megatron_ko.errors import KoError
from megatron_ko.train import setup  # noqa: F401  (imported before forking, so that a start takes no time)
from megatron_ko.train.lineage import versions

ROOT = Path(__file__).parents[2]
NewRun = Callable[..., "Run"]

CONFIG = """
run: {{dir: run, name: tiny, seed: 7}}
model: {{num_layers: 4, hidden_size: 32, ffn_hidden_size: 64, num_attention_heads: 4, num_query_groups: 2,
         vocab_size: 600, max_position_embeddings: 64, tie_embeddings: true}}
precision: {{dtype: fp32}}
data: {{tokenizer: {folder}/tokenizer, sources: [{{prefix: {folder}/corpus}}], split: [90, 10, 0], sequence_length: 32}}
optim: {{lr: 3.0e-3, schedule: wsd, warmup_steps: 1}}
training: {{steps: 30, global_batch_size: 8, micro_batch_size: 4}}
eval: {{interval: 10, samples: 10}}
checkpoint: {{interval: 10, keep: 2}}
logging: {{tensorboard: false}}
launch: {{threads_per_rank: 1}}
"""


def make_corpus(folder: Path) -> Path:
    """Fill a folder from the project's hand-written corpus."""
    corpus = tuple(sorted((ROOT / "demo/corpus").glob("*.jsonl")))
    tokenizer = folder / "tokenizer"
    train_tokenizer(corpus, tokenizer, TokenizerOptions(model="byte-bpe", vocab_size=600))
    preprocess(PreprocessOptions(inputs=corpus, tokenizer=tokenizer, output=folder / "corpus"))
    (folder / "tiny.yaml").write_text(CONFIG.format(folder=folder), encoding="utf-8")
    return folder


@dataclass(frozen=True)
class Ended:
    """How a run ended: exit code (minus the signal number when killed), standard output and standard error."""

    returncode: int
    stdout: str
    stderr: str


@dataclass(frozen=True)
class Run:
    """One run directory and the configuration that trains in it."""

    config: Path
    folder: Path
    overrides: Sequence[str] = ()
    largest_file: int | None = None  # bytes that a file may have: stands for a disk that fills up while writing

    def words(self, *more: str) -> list[str]:
        """Overrides of this run."""
        return [f"run.dir={self.folder}", *self.overrides, *more]

    def command(self, *more: str) -> list[str]:
        """The command line."""
        return [sys.executable, "-m", "megatron_ko.cli.main", "train", str(self.config), *self.words(*more)]

    def train(self, *more: str) -> Ended:
        """Train to the end."""
        return self._end(self._start(*more))

    def train_from(self, step: int, *more: str) -> Ended:
        """Go back to the checkpoint of a step, and train to the end."""
        return self._end(self._start(*more, from_step=step))

    def train_until(self, step: int, number: signal.Signals, *more: str) -> Ended:
        """Train, and send a signal to the parent of the ranks once a step is in the metric store."""
        process = self._start(*more)
        deadline = time.monotonic() + PATIENCE
        while process.is_alive() and self.last_step() < step and time.monotonic() < deadline:
            time.sleep(0.005)
        assert process.is_alive(), self._end(process)
        assert process.pid is not None
        os.kill(process.pid, number)
        return self._end(process)

    def _start(self, *more: str, from_step: int | None = None) -> ForkProcess:
        self._log("out").parent.mkdir(parents=True, exist_ok=True)
        process = multiprocessing.get_context("fork").Process(target=self._child, args=(from_step, *more))
        process.start()
        return process

    def _end(self, process: ForkProcess) -> Ended:
        process.join(PATIENCE)
        if process.is_alive():
            process.kill()
            process.join()
        assert process.exitcode is not None
        return Ended(process.exitcode, self._log("out").read_text(), self._log("err").read_text())

    def _child(self, from_step: int | None, *more: str) -> None:
        os.environ["MEGATRON_KO_DEVICE"] = "cpu"
        if self.largest_file is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (self.largest_file, self.largest_file))
        with (
            self._log("out").open("w") as out,
            self._log("err").open("w") as err,
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
        ):
            code = self._exit_code(from_step, *more)
        os._exit(code)  # nothing of the test runner must run here

    def _exit_code(self, from_step: int | None, *more: str) -> int:
        try:
            train(self.config, self.words(*more), from_step)
        except typer.Exit as end:
            return end.exit_code
        except KoError as error:
            print(error, file=sys.stderr)
            return error.exit_code
        return 0

    def _log(self, kind: str) -> Path:
        return self.folder.parent / f"{self.folder.name}.{kind}.log"

    def lines(self, name: str) -> list[dict[str, Any]]:
        """Whole lines of a metric file."""
        path = self.folder / "metrics" / f"{name}.jsonl"
        text = path.read_text(encoding="utf-8").rpartition("\n")[0] if path.exists() else ""
        return [json.loads(line) for line in text.splitlines()]

    def last_step(self) -> int:
        """Newest step in the metric store."""
        return max((line["step"] for line in self.lines("train")), default=0)

    def column(self, name: str) -> list[Any]:
        """One value of every step."""
        return [line[name] for line in self.lines("train")]

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


def assert_a_stop_changes_nothing(control: Run, stopped: Run) -> None:
    """A run that is stopped after step 4 and started again has every number of one that was not, to the last bit."""
    ended = control.train()
    assert ended.returncode == 0, ended.stderr
    assert stopped.train_until(4, signal.SIGUSR1).returncode == 75
    assert stopped.train().returncode == 0
    assert stopped.losses() == control.losses() and stopped.valid() == control.valid()
    assert stopped.column("grad_norm") == control.column("grad_norm")


def machine() -> str:
    """What decides the rounding: processor, vector instructions, versions of the arithmetic."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    found = versions()
    return f"{model}, {torch.backends.cpu.get_cpu_capability()}, torch {found['torch']}, mcore {found['megatron_core']}"
