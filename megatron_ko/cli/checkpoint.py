"""`megatron-ko checkpoint`: lists and verifies the checkpoints of a run."""

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from megatron_ko.errors import CheckpointError

_AXES = {"tensor": "tp", "pipeline": "pp", "context": "cp", "expert": "ep", "data": "dp"}

app = typer.Typer(no_args_is_help=True, help="List and verify the checkpoints of a run.")


@app.callback()
def _checkpoint() -> None:
    """Makes ``ls`` a subcommand even though it is the only one."""


@app.command("ls")
def list_(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Run directory, or its checkpoints folder.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    quick: Annotated[bool, typer.Option("--quick", help="Check sizes only, without reading the files.")] = False,
) -> None:
    """List the checkpoints of a run, oldest first, each verified against its manifest.

    Example: megatron-ko checkpoint ls runs/demo --json
    """
    import orjson

    from megatron_ko.artifacts.checkpoints import list_checkpoints

    folder = directory / "checkpoints" if (directory / "checkpoints").is_dir() else directory
    if not folder.is_dir():
        raise CheckpointError("there is no such folder", got=directory, expected="a run directory")
    rows = list_checkpoints(folder, hashes=not quick)
    if as_json:
        typer.echo(orjson.dumps([asdict(row) for row in rows], option=orjson.OPT_INDENT_2).decode())
        return
    if not rows:
        typer.echo(f"no checkpoints in {folder}")
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("checkpoint", "tokens", "MiB", "layout", "age", "state", box=None)
    for row in rows:
        state = "valid" if row.valid else f"damaged: {row.problems[0]}"
        layout = row.layout or {}
        table.add_row(
            row.name + (" (latest)" if row.latest else ""),
            "-" if row.tokens is None else f"{row.tokens:,}",
            "-" if row.bytes is None else f"{row.bytes / 2**20:.1f}",
            " ".join(f"{short}{layout[axis]}" for axis, short in _AXES.items() if axis in layout) or "-",
            "-" if row.age_s is None else f"{row.age_s:.0f} s",
            state,
        )
    # In a pipe, lines do not have to be wrapped.
    Console(width=None if sys.stdout.isatty() else 1000).print(table)
