"""What passes from one file of data/ and convert/ to another has a type that says what is in it."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# Files that an export takes along: they follow transformers' types, not ours.
TEMPLATES = ROOT / "megatron_ko/convert/templates"
SOURCES = sorted(
    path
    for part in ("data", "convert")
    for path in (ROOT / "megatron_ko" / part).rglob("*.py")
    if path.parent != TEMPLATES
)
OPEN = {"dict[str, Any]", "Mapping[str, Any]", "dict[Any, Any]"}
# The only files in which these types may stand, and why.
EXEMPT = {
    "megatron_ko/convert/families/base.py": "names config.json, which transformers decides, and unvalidated fields",
    "megatron_ko/data/training/feed.py": "keeps the position of a feed in a checkpoint; only that feed reads it",
}


def open_types(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Line and text of every open dictionary in a signature, a declaration or an alias."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            places = [*(argument.annotation for argument in arguments), node.returns]
        elif isinstance(node, ast.AnnAssign):
            places = [node.annotation]
        elif isinstance(node, ast.Assign):
            places = [node.value]
        else:
            continue
        for place in filter(None, places):
            parts = {ast.unparse(part) for part in ast.walk(place) if isinstance(part, ast.Subscript)}
            if parts & OPEN:
                yield place.lineno, ast.unparse(place)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_dictionaries_say_what_they_hold(path: Path) -> None:
    found = list(open_types(ast.parse(path.read_text(encoding="utf-8"))))
    exempt = EXEMPT.get(str(path.relative_to(ROOT)))
    assert bool(found) == bool(exempt), (
        f"{found}: make it a dataclass or a TypedDict; where others decide what is in it, a JsonObject or an HfConfig"
    )


def test_an_open_dictionary_is_seen() -> None:
    lines = [
        "def f(a: dict[str, Any]) -> list[dict[str, Any]]: ...",
        "class C:",
        "    x: dict[str, Any]",
        "J = dict[str, Any]",
    ]
    found = [line for line, _ in open_types(ast.parse("\n".join(lines)))]
    assert sorted(found) == [1, 1, 3, 4]
