"""The import graph: strictly downward, without cycles, and light where it must be light."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "megatron_ko"
# Files that an export takes along: they run where this package is not.
TEMPLATES = PACKAGE / "convert/templates"

# package -> packages that it may import (besides itself). This table is the picture in docs/architecture.md.
ALLOWED = {
    "__init__": set(),
    "errors": set(),
    "log": set(),
    "config": {"errors", "log"},
    "plan": {"errors", "log", "config"},
    "machine": set(),
    "parallel": {"errors", "log", "config", "machine"},
    "storage": {"errors", "log"},
    "artifacts": {"__init__", "errors", "log", "config", "storage"},
    "data": {"__init__", "errors", "log", "config", "storage"},
    "models": {"__init__", "errors", "log", "config", "parallel"},
    "objectives": {"errors", "log", "config", "parallel", "data"},
    "convert": {"errors", "log", "config", "storage", "artifacts", "plan", "parallel", "data", "models"},
    "eval": {"errors", "log", "config", "artifacts", "data", "models", "parallel"},
    "metrics": {"errors"},
    "report": {"errors", "log", "config", "metrics"},
    "train": {
        *("__init__", "errors", "log", "config", "storage", "artifacts", "metrics", "plan"),
        *("parallel", "data", "models", "objectives"),
    },
    "cli": {
        *("__init__", "errors", "log", "config", "storage", "artifacts", "plan"),
        *("machine", "parallel", "data", "models", "convert", "eval", "report", "train"),
    },
}


def modules() -> dict[str, ast.Module]:
    found = {}
    for path in sorted(path for path in PACKAGE.rglob("*.py") if path.parent != TEMPLATES):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        found[name.removesuffix(".__init__") if name != "megatron_ko.__init__" else name] = ast.parse(path.read_text())
    return found


MODULES = modules()


def imports_of(tree: ast.Module) -> list[tuple[str, bool]]:
    """Dotted names imported anywhere in a module, and whether at its top level."""
    top = {id(node) for node in tree.body}
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(alias.name, id(node) in top) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import of {node.module}"
            found += [(f"{node.module}.{alias.name}", id(node) in top) for alias in node.names]
    return found


def part_of(dotted: str) -> str:
    """The part of the package that a dotted name belongs to: 'config', 'train', ... or '__init__'."""
    parts = dotted.split(".")
    inner = parts[1] if len(parts) > 1 else "__init__"
    return inner if inner in ALLOWED else "__init__"


@pytest.mark.parametrize("name", MODULES)
def test_imports_point_downward(name: str) -> None:
    here = part_of(name)
    own = [dotted for dotted, _ in imports_of(MODULES[name]) if dotted.split(".")[0] == "megatron_ko"]
    wrong = sorted(dotted for dotted in own if part_of(dotted) not in ALLOWED[here] | {here})
    assert not wrong, f"{name} ({here}) must not import {wrong}"


def test_no_import_cycles() -> None:
    graph = {
        name: {target for dotted, _ in imports_of(tree) if (target := _module(dotted)) and target != name}
        for name, tree in MODULES.items()
    }
    state: dict[str, int] = {}

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert state.get(name) != 1, "import cycle: " + " -> ".join((*path, name))
        if name not in state:
            state[name] = 1
            for target in sorted(graph[name]):
                visit(target, (*path, name))
            state[name] = 2

    for name in graph:
        visit(name, ())


def _module(dotted: str) -> str | None:
    """The module that ``from x import y`` reads: x.y if that is a module, else x."""
    return next((name for name in (dotted, dotted.rpartition(".")[0]) if name in MODULES), None)


@pytest.mark.parametrize("name", [name for name in MODULES if part_of(name) != "cli"])
def test_only_cli_imports_inside_functions(name: str) -> None:
    """Lazy imports of our own modules hide arrows; only verbs use them, so that --help stays instant."""
    lazy = [dotted for dotted, top in imports_of(MODULES[name]) if dotted.startswith("megatron_ko") and not top]
    assert not lazy


@pytest.mark.parametrize("name", [name for name in MODULES if part_of(name) == "data"])
def test_only_batches_need_torch_and_megatron(name: str) -> None:
    """What makes batches needs torch; sample order and blending are megatron-core's."""
    roots = {dotted.split(".")[0] for dotted, _ in imports_of(MODULES[name])}
    assert "torch" not in roots or name.startswith("megatron_ko.data.training.")
    engine = {dotted for dotted, _ in imports_of(MODULES[name]) if dotted.startswith("megatron.")}
    assert not engine or name in ("megatron_ko.data.training.pretrain", "megatron_ko.data.training.post_training")
    assert all(dotted.startswith("megatron.core.datasets.") for dotted in engine)


@pytest.mark.parametrize("name", [name for name in MODULES if part_of(name) != "parallel"])
def test_only_parallel_touches_the_device_and_the_global_groups(name: str) -> None:
    for node in ast.walk(MODULES[name]):
        if isinstance(node, ast.Attribute):
            dotted = ast.unparse(node)
            assert not dotted.startswith("torch.cuda"), f"{name}:{node.lineno} touches {dotted}"
            assert "parallel_state" not in dotted, f"{name}:{node.lineno} touches {dotted}"
    for dotted, _ in imports_of(MODULES[name]):
        assert not dotted.startswith("torch.cuda") and "parallel_state" not in dotted, f"{name} imports {dotted}"


@pytest.mark.parametrize("module", ["artifacts.native", "data.training.preview", "machine.device"])
def test_what_is_asked_before_a_start_needs_no_torch(module: str) -> None:
    code = f"import sys, megatron_ko.{module}; print('torch' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert out.stdout.strip() == "False"


@pytest.mark.parametrize("module", ["megatron_ko.config", "megatron_ko.plan.params", "megatron_ko.cli.main"])
def test_light_modules_import_no_torch(module: str) -> None:
    code = (
        f"import sys, {module}; print([m for m in ('torch', 'megatron', 'transformers', 'numpy') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert out.stdout.strip() == "[]"
