"""`megatron-ko lineage`: what a run or a converted model was made of."""

import json
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, help="What a run or a converted model was made of.")


@app.callback()
def _group() -> None:
    """What a run or a converted model was made of."""


@app.command()
def show(
    path: Annotated[Path, typer.Argument(metavar="DIR", help="Run directory, or a folder that a conversion wrote.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Draw the ancestry as a tree: weights, corpus, tokenizer, code, and the same of every parent.

    The weights are hashed now. Where they are not those of the lineage, that is an error.

    Example: megatron-ko lineage show exports/demo
    """
    from megatron_ko.artifacts.lineage import draw
    from megatron_ko.artifacts.native import describe

    node = describe(path)
    typer.echo(json.dumps(node, ensure_ascii=False) if as_json else "\n".join(draw(node)))
