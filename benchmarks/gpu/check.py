"""Measure and check one GPU, without a network and in limited time: the most important figures first.

    python benchmarks/gpu/check.py [--device cuda] [--minutes 9.5] [--only NAME ...] [--out FOLDER] [--list]

Steps, their order and limits are in steps.py. RESULTS.json is written after every step, TABLE.txt at the end. The exit
code is 1 when a step failed, a comparison included, or was stopped at its limit; steps that no time was left for are
named. `--device cpu` rehearses every kind of step on a toy. Needs nothing but Python to start: wheels in PACK/wheels
are installed into a folder of their own first.
"""

import argparse
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from gpu.report import conditions, table
from gpu.runner import FAILED, OVER, Outcome, as_json, end_everything, run_all, run_step, write_json
from gpu.steps import Step, chosen

ROOT = Path(__file__).parents[2]
TEST_TOOLS = ("pytest", "pluggy", "iniconfig", "execnet", "pytest_xdist", "hypothesis", "sortedcontainers")


def main() -> None:
    options = parse()
    steps = chosen(options.device, options.only)
    if options.list or not steps:
        print("\n".join(step.name for step in steps) or f"no step is called {' or '.join(options.only)}")
        sys.exit(0 if steps else 2)
    deadline = time.monotonic() + 60 * options.minutes
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end_everything)
    environment = prepare(options)
    results = Results(options.out, options.device)

    def start(step: Step, limit_s: float) -> Outcome:
        folder = options.work / "steps" / file_name(step)
        shutil.rmtree(folder, ignore_errors=True)
        outcome = run_step(step, limit_s, folder, environment)
        results.add(step, outcome, folder)
        return outcome

    outcomes = run_all(steps, deadline, start)
    print(results.finish(outcomes), flush=True)
    sys.exit(1 if any(outcome.status in (FAILED, OVER) for outcome in outcomes) else 0)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--minutes", type=float, default=9.5, help="Everything has ended after that long.")
    parser.add_argument("--only", nargs="+", default=[], help="Steps whose names contain one of these.")
    parser.add_argument("--out", type=Path, default=ROOT / "runs/gpu-check", help="For results and logs: small.")
    parser.add_argument("--work", type=Path, default=ROOT / "runs/gpu-check/work", help="For all else: up to 40 GB.")
    parser.add_argument("--pack", type=Path, default=ROOT / ".gpu", help="What `make gpu-pack` made.")
    parser.add_argument("--list", action="store_true", help="Print the names of the steps, and stop.")
    options = parser.parse_args()
    options.out, options.work, options.pack = (path.resolve() for path in (options.out, options.work, options.pack))
    return options


class Results:
    """The folder of results: RESULTS.json with every step that has ended, their logs, and the table at the end."""

    def __init__(self, folder: Path, device: str) -> None:
        self._folder = folder
        self._done: list[Outcome] = []
        self._lock = threading.Lock()
        self._head = {"date": datetime.now(UTC).date().isoformat(), "device": device}
        folder.mkdir(parents=True, exist_ok=True)

    def add(self, step: Step, outcome: Outcome, folder: Path) -> None:
        """One more; told on the terminal."""
        with self._lock:
            self._done.append(outcome)
            self._write(self._done)
        for path in folder.glob("*.txt"):
            shutil.copyfile(path, self._folder / f"{file_name(step)}.{path.name}")
        print(f"{outcome.name:<38}{outcome.seconds:>8.1f} s  {outcome.status}", flush=True)
        if outcome.log:
            print(indented(outcome.log), flush=True)

    def finish(self, outcomes: list[Outcome]) -> str:
        """Write everything in order, and give the table."""
        content = self._write(outcomes)
        text = "\n".join([f"measured: {conditions(content)}", *table(content["steps"])])
        (self._folder / "TABLE.txt").write_text(text + "\n", encoding="utf-8")
        return text

    def _write(self, outcomes: list[Outcome]) -> dict[str, Any]:
        content = {**self._head, "steps": as_json(outcomes)}
        write_json(self._folder / "RESULTS.json", content)
        return content


def file_name(step: Step) -> str:
    """Of a step's folder and logs."""
    return step.name.replace(" ", "_").replace("/", "_")


def indented(log: str, lines: int = 12) -> str:
    """The end of a log."""
    return "\n".join(f"    {line[:250]}" for line in log.strip().splitlines()[-lines:])


def missing(folder: Path) -> list[Path]:
    """Wheels of the pack, without pytest where the machine has it: the plugins there are made for that release."""
    has_pytest = all(importlib.util.find_spec(name) for name in ("pytest", "xdist", "hypothesis"))
    left_out = TEST_TOOLS if has_pytest else ()
    return [wheel for wheel in sorted(folder.glob("*.whl")) if wheel.name.split("-")[0] not in left_out]


def prepare(options: argparse.Namespace) -> dict[str, str]:
    """Install the wheels, make shards where none were brought along, and say what the steps find where."""
    site = options.work / "site"
    wheels = missing(options.pack / "wheels") if options.device == "cuda" else []
    if wheels and not site.exists():
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-compile"]
        own = ["--no-cache-dir", "--disable-pip-version-check", "--root-user-action=ignore", "--target", str(site)]
        subprocess.run([*pip, *own, *map(str, wheels)], check=True)
    path = [str(site), str(ROOT), str(ROOT / "benchmarks"), os.environ.get("PYTHONPATH", "")]
    data = options.pack / "data"
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, path)),
        "PYTHONUNBUFFERED": "1",
        "PYTHONWARNINGS": "ignore",
        "MEGATRON_KO_DEVICE": options.device,
        "TORCHINDUCTOR_CACHE_DIR": str(options.work / "inductor"),
        "GPU_CHECK_DATA": str(data if data.exists() else options.work / "data"),
    }
    if not data.exists():
        subprocess.run([sys.executable, "-m", "gpu.shards", environment["GPU_CHECK_DATA"]], check=True, env=environment)
    return environment


if __name__ == "__main__":
    main()
