"""Put the output of commands into the pages of docs/, so that no figure there is typed. Run by `make docs`.

A block begins with ``<!-- output of: megatron-ko ... -->``, where * stands for files, and ends with ``<!-- end -->``.

A page may also hold an example: shell blocks between ``<!-- example -->`` and ``<!-- end of example -->``, run in
order and word for word in one new folder, with links to configs/ and to the corpora. What a block prints to standard
output stands after it, between ``<!-- prints -->`` and ``<!-- end -->``. Examples need the corpora and minutes, so they
run with --examples only.
"""

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from typer.testing import CliRunner

from megatron_ko.cli.main import app

ROOT = Path(__file__).parents[1]
CORPORA = Path(os.environ.get("MEGATRON_KO_SHARED_DATA", ROOT.parent / "shared/data"))
BLOCK = re.compile(r"(<!-- output of: megatron-ko (.+?) -->\n).*?(<!-- end -->)", re.DOTALL)
EXAMPLE = re.compile(r"(?<=<!-- example -->\n).*?(?=<!-- end of example -->)", re.DOTALL)
_STEP = re.compile(r"(```bash\n(.*?)```\n)(?:(\n<!-- prints -->\n).*?(<!-- end -->))?", re.DOTALL)


def filled(page: str) -> str:
    """The page with what its commands print now."""
    return BLOCK.sub(lambda block: f"{block[1]}\n{as_markdown(output(block[2]))}\n{block[3]}", page)


def with_examples(page: str, folder: Path) -> str:
    """The page with its examples run in an empty folder."""
    for source in (ROOT / "configs", *CORPORA.glob("*.gz")):
        (folder / source.name).symlink_to(source)
    return EXAMPLE.sub(lambda example: _STEP.sub(lambda step: _run(step, folder), example[0]), page)


def _run(step: re.Match[str], folder: Path) -> str:
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "COLUMNS": "120"}
    command = ["bash", "-euo", "pipefail", "-c", step[2]]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{step[2]}\n{done.stderr}"
    return f"{step[1]}{step[3]}\n{as_markdown(done.stdout)}\n{step[4]}" if step[3] else step[1]


def as_markdown(text: str) -> str:
    """Tables in Markdown as they are, anything else as it stands in a terminal."""
    lines = "\n".join(line.rstrip() for line in text.strip().splitlines())
    return f"{lines}\n" if lines.startswith("|") else f"```\n{lines}\n```\n"


def output(command: str) -> str:
    """What ``megatron-ko`` prints."""
    arguments: list[str] = []
    for word in command.split():
        arguments += map(str, sorted(ROOT.glob(word))) if "*" in word else [word]
    result = CliRunner().invoke(app, arguments, env={"COLUMNS": "120"})
    assert result.exit_code == 0, result.output
    return result.stdout


def main() -> None:
    """Rewrite every page that has such blocks, and with --examples those that have examples."""
    for page in sorted((ROOT / "docs").glob("*.md")):
        text = page.read_text(encoding="utf-8")
        if BLOCK.search(text):
            page.write_text(filled(text), encoding="utf-8")
        elif "--examples" in sys.argv and EXAMPLE.search(text):
            with tempfile.TemporaryDirectory() as folder:
                page.write_text(with_examples(text, Path(folder)), encoding="utf-8")


if __name__ == "__main__":
    main()
