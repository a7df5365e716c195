"""Train the small cases, several processes at once with many cases each, and compare their losses in pairs."""

import math
import queue
import sys
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from gpu.cases import CASES, PAIRS, RUN, TOY, Case, Pair
from gpu.step_options import Given, given
from gpu.workers import Ran, Worker


@dataclass(frozen=True)
class Verdict:
    """What a pair came to.

    Attributes:
        pair: "LEFT, RIGHT".
        difference: largest relative difference of a step's losses; None where it could not be computed.
        tolerance: what is allowed.
        problem: why they are not alike, or not compared; empty where they are alike.
        compared: whether both sides were run at all.
    """

    pair: str
    difference: float | None
    tolerance: float
    problem: str
    compared: bool = True


def difference(left: Sequence[float | None], right: Sequence[float | None]) -> float:
    """Largest relative difference of two curves, step by step; infinite where a loss is not a number."""
    finite = [(a, b) for a, b in zip(left, right, strict=True) if a is not None and b is not None]
    if len(finite) < len(left) or not all(math.isfinite(a) and math.isfinite(b) and b for a, b in finite):
        return math.inf
    return max(abs(a - b) / abs(b) for a, b in finite)


def judge(pair: Pair, losses: Mapping[str, Sequence[float | None]], left_out: Mapping[str, str]) -> Verdict:
    """Compare the two sides of a pair.

    Args:
        pair: what is compared.
        losses: by case; a case that failed has none.
        left_out: cases that this machine cannot run, and why.
    """
    name = f"{pair.left}, {pair.right}"
    if why := left_out.get(pair.left) or left_out.get(pair.right):
        return Verdict(name, None, pair.tolerance, why, compared=False)
    left, right = losses.get(pair.left, []), losses.get(pair.right, [])
    if not left or len(left) != len(right):
        return Verdict(name, None, pair.tolerance, f"{len(left)} steps against {len(right)}")
    found = difference(left, right)
    return Verdict(name, found, pair.tolerance, "" if found <= pair.tolerance else "too far apart")


def why_left_out(case: Case, device: str, has_engine: bool) -> str:
    """Why a machine cannot run a case; empty if it can."""
    if case.needs == "cuda" and device == "cpu":
        return "needs a CUDA device"
    if case.needs and device == "cuda" and not has_engine:
        return "needs Transformer Engine"
    return ""


def main() -> None:
    sys.exit(run(given(), CASES, PAIRS))


def run(step: Given, cases: Mapping[str, Case], pairs: Sequence[Pair]) -> int:
    """Train cases and judge pairs; 0 when all of them are alike."""
    has_engine = engine_is_installed()
    left_out = {name: why for name, case in cases.items() if (why := why_left_out(case, step.device, has_engine))}
    ran = run_cases(step, {name: case for name, case in cases.items() if name not in left_out})
    losses = {name: result.losses for name, result in ran.items() if result.code == 0}
    verdicts = [judge(pair, losses, left_out) for pair in pairs]
    step.tell({"cases": told(ran), "pairs": [asdict(verdict) for verdict in verdicts]})
    failed = {name: result for name, result in ran.items() if result.code}
    for name, result in failed.items():
        print(f"{name}: exit code {result.code}\n{result.log}")
    wrong = [verdict for verdict in verdicts if verdict.compared and verdict.problem]
    for verdict in wrong:
        print(f"{verdict.pair}: {verdict.problem}: {verdict.difference}, allowed {verdict.tolerance}")
    return 1 if wrong or failed else 0


def engine_is_installed() -> bool:
    """Whether there is a Transformer Engine; whether it works is what the step is to show."""
    from importlib.util import find_spec

    return find_spec("transformer_engine") is not None


def run_cases(step: Given, cases: Mapping[str, Case]) -> dict[str, Ran]:
    """Share cases out over the processes of both devices."""
    run_file = step.folder / "run.yaml"
    run_file.write_text(RUN.format(folder=step.folder, data=step.data), encoding="utf-8")
    ran: dict[str, Ran] = {}
    lock = threading.Lock()
    waiting: dict[bool, queue.SimpleQueue[str]] = {True: queue.SimpleQueue(), False: queue.SimpleQueue()}
    for name, case in cases.items():
        waiting[case.on_cpu].put(name)

    def serve(on_cpu: bool) -> None:
        with Worker("cpu" if on_cpu else step.device, step.options.get("threads", 1)) as worker:
            while True:
                try:
                    name = waiting[on_cpu].get_nowait()
                except queue.Empty:
                    return
                result = run_case(worker, run_file, step, cases[name].words, name)
                with lock:
                    ran[name] = result
                    step.tell({"cases": told(ran)})

    kinds = [False] * step.options["workers"] + [True] * step.options["cpu_workers"]
    with ThreadPoolExecutor(len(kinds)) as pool:
        served = [pool.submit(serve, kind) for kind in kinds]
    for ended in served:
        ended.result()
    return {name: ran[name] for name in cases}


def run_case(worker: Worker, run_file: Path, step: Given, case: Sequence[str], name: str) -> Ran:
    """One case; where it fails, once more in a process of its own, which tells a fault from what a run left behind."""
    words = [*(TOY if step.device == "cpu" else ()), *case]
    folder = step.folder / name.replace(" ", "_")
    ran = worker.train(run_file, folder, words)
    if ran.code:
        worker.close()
        ran = worker.train(run_file, folder.with_name(f"{folder.name}_alone"), words)
    return ran


def told(ran: Mapping[str, Ran]) -> dict[str, object]:
    """Cases as the results hold them."""
    return {
        name: {
            "code": run.code,
            "seconds": round(run.seconds, 2),
            "attention": run.attention,
            "losses": run.losses,
            "grad_norms": run.grad_norms,
            "log": run.log[-1500:] if run.code else "",
        }
        for name, run in ran.items()
    }


if __name__ == "__main__":
    main()
