"""Put the output of commands into the pages of docs/, so that no figure there is typed. Run by `make docs`.

A block begins with ``<!-- output of: megatron-ko ... -->``, where * stands for files, and ends with ``<!-- end -->``.
"""

import re
from pathlib import Path

from typer.testing import CliRunner

from megatron_ko.cli.main import app

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"(<!-- output of: megatron-ko (.+?) -->\n).*?(<!-- end -->)", re.DOTALL)


def filled(page: str) -> str:
    """The page with what its commands print now."""
    return BLOCK.sub(lambda block: f"{block[1]}\n{as_markdown(output(block[2]))}\n{block[3]}", page)


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
    """Rewrite every page that has such blocks."""
    for page in sorted((ROOT / "docs").glob("*.md")):
        text = page.read_text(encoding="utf-8")
        if BLOCK.search(text):
            page.write_text(filled(text), encoding="utf-8")


if __name__ == "__main__":
    main()
