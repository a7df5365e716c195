"""`megatron-ko lineage`: shows what a run or a converted model was made from."""

import json
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, help="Show what a run or a converted model was made from.")


@app.callback()
def _group() -> None:
    """Show what a run or a converted model was made from."""


@app.command()
def show(
    path: Annotated[Path, typer.Argument(metavar="DIR", help="Run directory, or a folder written by a conversion.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Draw the ancestry as a tree: weights, corpus, tokenizer, code, and the same for every parent.

    The weights are hashed again. It is an error if they do not match the lineage.

    Example: megatron-ko lineage show exports/demo
    """
    from megatron_ko.artifacts.lineage import draw
    from megatron_ko.artifacts.native import describe

    node = describe(path)
    typer.echo(json.dumps(node, ensure_ascii=False) if as_json else "\n".join(draw(node)))
