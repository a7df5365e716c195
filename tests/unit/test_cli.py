"""The command line is a contract: verbs, options, examples, exit codes."""

import json
import os
import resource
import subprocess
import sys
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import typer
from isolated import isolated
from patience import PATIENCE

from megatron_ko.cli.main import app, main

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests/golden/cli.json"


def walk(command: Any, name: str) -> dict[str, list[str]]:
    """Every verb with its parameters, as a user types them."""
    verbs = {}
    if hasattr(command, "commands"):
        for key, child in command.commands.items():
            verbs |= walk(child, f"{name} {key}".strip())
    else:
        verbs[name] = sorted(" ".join(p.opts) if p.param_type_name == "option" else p.name for p in command.params)
    return verbs


COMMAND = typer.main.get_command(app)
VERBS = walk(COMMAND, "")


def run(*words: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "megatron_ko.cli.main", *words]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=PATIENCE)


def test_verbs_and_options_are_the_published_ones() -> None:
    """A changed option breaks somebody's script. After a deliberate change: python tests/unit/test_cli.py > GOLDEN."""
    assert json.loads(GOLDEN.read_text(encoding="utf-8")) == VERBS


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_shows_an_example(verb: str) -> None:
    command = COMMAND
    for word in verb.split():
        command = command.commands[word]
    assert "Example: megatron-ko " + verb in " ".join((command.help or "").split())


def test_help_is_quick_and_needs_no_folder(tmp_path: Path) -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    result = run("--help", cwd=tmp_path)
    assert result.returncode == 0 and "tokenizer" in result.stdout
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before < 2.0


@pytest.mark.parametrize(
    "words",
    [
        ("train",),
        ("train", "nowhere.yaml"),
        ("train", "configs/runs/demo.yaml", "optim.learning_rate=1"),
        ("config", "check", "configs/runs/demo.yaml", "--ranks", "3"),
        ("plan", "params", "nowhere.yaml"),
        ("report", "nowhere"),
        ("generate", "nowhere", "--prompt", "x"),
        ("checkpoint", "ls", "nowhere"),
        ("tokenizer", "train", "--input", "nowhere.txt", "--vocab-size", "300", "--output", "/tmp/never"),
        ("data", "preprocess", "--input", "nowhere.txt", "--tokenizer", "nowhere", "--output", "/tmp/never"),
        ("data", "preprocess", "--input", "README.md", "--tokenizer", "nowhere", "--output", ""),
        ("data", "verify", ""),
        ("config", "check", "README.md/x.yaml"),
        ("no-such-verb",),
    ],
    ids=" ".join,
)
def test_user_errors_end_with_2_and_a_sentence(words: tuple[str, ...]) -> None:
    code, told = isolated(ended, words)
    assert code == 2
    assert told.strip() and "Traceback" not in told


def ended(words: tuple[str, ...]) -> tuple[object, str]:
    """Exit code and standard error of the program, in the process that calls this."""
    os.chdir(ROOT)
    sys.argv[1:] = words
    with redirect_stderr(StringIO()) as told, pytest.raises(SystemExit) as end:
        main()
    return end.value.code, told.getvalue()


if __name__ == "__main__":
    print(json.dumps(VERBS, indent=2, sort_keys=True))
