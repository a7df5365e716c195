"""`megatron-ko report`: writes a page that shows what a run did."""

import json
from pathlib import Path
from typing import Annotated

import typer


def report(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Run directory of `megatron-ko train`.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print the key figures and the page's path as JSON.")] = False,
) -> None:
    """Write DIR/report/index.html: key figures, plots, configuration and lineage of a run.

    Also works during a run. The page is a single file that loads nothing else, so it can be mailed or archived.

    Example: megatron-ko report runs/demo
    """
    from megatron_ko.report.html import save_page
    from megatron_ko.report.store import read_run
    from megatron_ko.report.summary import summarise

    run = read_run(directory)
    page = save_page(directory, run)
    if as_json:
        typer.echo(json.dumps({**summarise(run).as_dict(), "report": str(page)}, ensure_ascii=False))
    else:
        typer.echo(str(page))
