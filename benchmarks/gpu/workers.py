"""The other end of ``worker.py``: a process that trains one small run after another. Needs no torch."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

BENCHMARKS = Path(__file__).parents[1]
ROOT = BENCHMARKS.parent
READY = "ready\n"  # what the process says when it can train


@dataclass(frozen=True)
class Ran:
    """How a run ended.

    Attributes:
        code: exit code, as of the command; 1 where the process itself died.
        losses: of every step.
        grad_norms: of every step, before clipping.
        attention: the kernels that it ran on, where they are told.
        seconds: without the start of the process.
        log: the end of what it printed.
    """

    code: int
    losses: list[float]
    grad_norms: list[float]
    attention: str | None
    seconds: float
    log: str


class Worker:
    """Trains runs in a process that is started with the first one.

    Args:
        device: "cuda" or "cpu".
        threads: CPU threads of the process.
    """

    def __init__(self, device: str, threads: int = 2) -> None:
        path = [str(ROOT), str(BENCHMARKS), *filter(None, [os.environ.get("PYTHONPATH")])]
        self._environment = {
            **os.environ,
            "MEGATRON_KO_DEVICE": device,
            "OMP_NUM_THREADS": str(threads),
            "TORCHINDUCTOR_COMPILE_THREADS": str(threads),  # each of several workers would take all cores
            "PYTHONPATH": os.pathsep.join(path),
        }
        self._threads = threads
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def train(self, run_file: Path, run_dir: Path, words: Sequence[str]) -> Ran:
        """Train a run to its end in ``run_dir``.

        Raises:
            RuntimeError: the process did not start, so no other run will do better.
        """
        log = run_dir.with_name(f"{run_dir.name}.log")
        given = [*words, f"run.dir={run_dir}", f"launch.threads_per_rank={self._threads}"]
        request = {"run_file": str(run_file), "words": given, "log": str(log)}
        process = self._started()
        assert process.stdin and process.stdout
        process.stdin.write(json.dumps(request) + "\n")
        process.stdin.flush()
        line = process.stdout.readline()
        answer = json.loads(line) if line else {"code": 1, "seconds": 0.0}
        if not line:
            self.close()
        text = log.read_text(encoding="utf-8", errors="replace")[-3000:] if log.exists() else ""
        steps = steps_of(run_dir)
        return Ran(
            code=answer["code"],
            losses=[step["loss"] for step in steps],
            grad_norms=[step["grad_norm"] for step in steps],
            attention=steps[-1].get("attention") if steps else None,
            seconds=answer["seconds"],
            log=text,
        )

    def _started(self) -> "subprocess.Popen[str]":
        if self._process is None:
            command = [sys.executable, "-m", "gpu.worker"]
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=self._environment
            )
            assert self._process.stdout
            if self._process.stdout.readline() != READY:
                self.close()
                raise RuntimeError(f"{' '.join(command)} did not start; its last words are above")
        return self._process

    def close(self) -> None:
        """End the process; another run starts a new one."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None


def steps_of(run_dir: Path) -> list[dict[str, Any]]:
    """The metric records of a run's steps; none where it did not come so far."""
    path = run_dir / "metrics/train.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []
