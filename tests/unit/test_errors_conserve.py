"""What must be conserved is looked at under ``python -O``, too, and by nothing that it removes."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_ko.errors import LostError, conserve

PACKAGE = Path(__file__).parents[2] / "megatron_ko"


def test_a_loss_is_an_error_with_both_counts() -> None:
    conserve("documents", 3, 3)
    with pytest.raises(LostError, match="documents are not conserved: 3 came in, 2 are accounted for"):
        conserve("documents", 3, 2)


def test_it_cannot_be_switched_off() -> None:
    code = "from megatron_ko.errors import conserve; conserve('tokens', 5, 4)"
    done = subprocess.run([sys.executable, "-O", "-c", code], capture_output=True, text=True)
    assert done.returncode == 1 and "LostError: tokens are not conserved" in done.stderr


@pytest.mark.parametrize("path", sorted((PACKAGE / "data").rglob("*.py")), ids=lambda path: path.stem)
def test_no_count_is_compared_by_an_assertion(path: Path) -> None:
    counts = {"documents", "tokens", "bytes", "total", "kept"}
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Assert) and isinstance(node.test, ast.Compare):
            names = {
                part.attr if isinstance(part, ast.Attribute) else getattr(part, "id", "") for part in ast.walk(node)
            }
            equal = any(isinstance(sign, ast.Eq) for sign in node.test.ops)
            assert not (equal and names & (counts - {"size"})), f"{path}:{node.lineno}"
