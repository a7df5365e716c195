"""Run a benchmark and keep what it printed in docs/performance.md, with date, device and versions.

    python benchmarks/record.py train_step.py --threads 2

Every figure on that page came here from a program's output. A benchmark that is run again replaces its section.
"""

import platform
import re
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from megatron_ko.parallel.platform import get_platform

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs/performance.md"
ELSEWHERE = "measured: "
PACKAGES = ("torch", "megatron-core", "transformers")
INTRODUCTION = """# Performance

Each section is the output of one benchmark, written by `benchmarks/record.py`. Peers are measured in the same run, in
turns. Times on shared machines drift, so compare rows within a table, not tables from different days.
"""


def main() -> None:
    command = ["python", f"benchmarks/{sys.argv[1]}", *sys.argv[2:]]
    done = subprocess.run([sys.executable, *command[1:]], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    print(done.stdout)
    title = f"## {' '.join(command)}"
    measured, output = separate(done.stdout)
    section = f"{title}\n\n{measured}\n\n```\n{output.rstrip()}\n```\n"
    page = PAGE.read_text(encoding="utf-8") if PAGE.exists() else INTRODUCTION
    rest = re.sub(rf"\n{re.escape(title)}\n.*?(?=\n## |\Z)", "", page, flags=re.DOTALL)
    PAGE.write_text(f"{rest.rstrip()}\n\n{section}", encoding="utf-8")


def separate(output: str) -> tuple[str, str]:
    """The conditions of a measurement, and its table. One that was made elsewhere says its own in its first line."""
    first, _, rest = output.partition("\n")
    return (first.removeprefix(ELSEWHERE), rest) if first.startswith(ELSEWHERE) else (conditions(), output)


def conditions() -> str:
    """Date, device and versions of a measurement that was made here, now."""
    device = get_platform()
    versions = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    today = datetime.now(UTC).date().isoformat()
    return f"{today}, {device.device_name} ({device.backend}), Python {platform.python_version()}, {versions}"


if __name__ == "__main__":
    main()
