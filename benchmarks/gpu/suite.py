"""tests/gpu under pytest, as a step: what failed and what was slow."""

import os
import re
import subprocess
import sys

from gpu.step_options import ROOT, given


def main() -> None:
    step = given()
    workers = step.options["workers"]
    command = [
        sys.executable, "-m", "pytest", "tests/gpu", "-m", "gpu", "-rsfE", "--tb=short", "-p", "no:cacheprovider",
        "--durations=10", f"--basetemp={step.folder / 'tmp'}",
        *(["-n", str(workers), "--dist", "loadgroup"] if workers else []),
    ]  # fmt: skip
    # Each of several processes would compile on all cores.
    own = {"TORCHINDUCTOR_COMPILE_THREADS": "2", **({"GPU_TESTS_ON_CPU": "1"} if step.device == "cpu" else {})}
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, **own}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    print(done.stdout)
    step.tell({"summary": summary_of(done.stdout), "counts": counts_of(done.stdout), "exit_code": done.returncode})
    sys.exit(done.returncode)


def summary_of(text: str) -> list[str]:
    """pytest's last lines: skips, failures, and the longest tests."""
    return [line[:250] for line in text.splitlines()[-40:]]


def counts_of(text: str) -> dict[str, int]:
    """Numbers of the last line: passed, failed, skipped, errors."""
    return {word: int(number) for number, word in re.findall(r"(\d+) (passed|failed|skipped|errors?)", text)}


if __name__ == "__main__":
    main()
