"""Running steps: each in a process of its own with a limit, and what came of it on disk after every one."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from gpu.steps import Step, together

DONE, FAILED, OVER, NOT_RUN = "done", "failed", "over its limit", "not run: out of time"
_running: set[int] = set()  # sessions of steps
_TAIL = 4000  # characters of a log that are kept beside the figures


@dataclass(frozen=True)
class Outcome:
    """What came of a step.

    Attributes:
        name: of the step.
        status: DONE, FAILED, OVER or NOT_RUN.
        seconds: wall time.
        result: what it wrote, also where it was stopped.
        log: the end of what it printed, unless it is done.
    """

    name: str
    status: str
    seconds: float = 0.0
    result: dict[str, Any] = field(default_factory=dict)
    log: str = ""


def run_all(steps: list[Step], deadline: float, start: Callable[[Step, float], Outcome]) -> list[Outcome]:
    """Run steps in order until the time is over. Steps that do not fit are named, and shorter ones behind them tried.

    Args:
        steps: in order of importance.
        deadline: ``time.monotonic()`` at which everything has ended.
        start: runs a step within so many seconds.
    """
    outcomes: list[Outcome] = []
    for group in together(steps):
        left = deadline - time.monotonic()
        fitting = [step for step in group if step.needs_s <= left]
        outcomes += [Outcome(step.name, NOT_RUN) for step in group if step not in fitting]
        with ThreadPoolExecutor(max(1, len(fitting))) as pool:
            outcomes += pool.map(start, fitting, [min(step.limit_s, left) for step in fitting])
    return outcomes


def run_step(step: Step, limit_s: float, folder: Path, environment: Mapping[str, str]) -> Outcome:
    """Run ``python -m gpu.MODULE`` and everything that it starts, for ``limit_s`` seconds at most."""
    folder.mkdir(parents=True, exist_ok=True)
    result, log = folder / "result.json", folder / "log.txt"
    command = [sys.executable, "-m", f"gpu.{step.module}", "--folder", str(folder), json.dumps(step.options)]
    started = time.monotonic()
    with log.open("wb") as stream:
        process = subprocess.Popen(
            command, stdout=stream, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, env=environment,
            start_new_session=True,
        )  # fmt: skip
        _running.add(process.pid)
        try:
            status = DONE if process.wait(limit_s) == 0 else FAILED
        except subprocess.TimeoutExpired:
            status = OVER
        finally:
            _end(process)
    read = json.loads(result.read_text(encoding="utf-8")) if result.exists() else {}
    text = "" if status == DONE else log.read_text(encoding="utf-8", errors="replace")[-_TAIL:]
    return Outcome(step.name, status, round(time.monotonic() - started, 1), read, text)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the step's own session: what it started may outlive it."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    _running.discard(process.pid)


def end_everything(number: int, frame: FrameType | None) -> None:
    """What a signal does: no step outlives this process."""
    for group in list(_running):
        with suppress(ProcessLookupError):
            os.killpg(group, signal.SIGKILL)
    os._exit(128 + number)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Replace a file at once, so that whoever is stopped meanwhile leaves a whole one."""
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    temporary.write_text(json.dumps(content, indent=1, ensure_ascii=False, default=str), encoding="utf-8")
    temporary.replace(path)


def as_json(outcomes: list[Outcome]) -> list[dict[str, Any]]:
    """Outcomes as RESULTS.json holds them."""
    return [asdict(outcome) for outcome in outcomes]
