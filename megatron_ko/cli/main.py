"""The `megatron-ko` program: one file per command, and one place that turns errors into exit codes."""

import sys
from collections.abc import Callable
from typing import Annotated, NoReturn

import typer

from megatron_ko import __version__
from megatron_ko.cli import (
    chat,
    checkpoint,
    config,
    convert,
    data,
    generate,
    lineage,
    plan,
    report,
    sweep,
    tokenizer,
    train,
)
from megatron_ko.errors import KoError, repairable

app = typer.Typer(
    name="megatron-ko",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Train Korean language models: text -> tokenizer -> shards -> parallel training -> report.",
)
app.add_typer(tokenizer.app, name="tokenizer")
app.add_typer(data.app, name="data")
app.add_typer(config.app, name="config")
app.add_typer(plan.app, name="plan")
app.command()(train.train)
app.command()(sweep.sweep)
app.add_typer(checkpoint.app, name="checkpoint")
app.add_typer(convert.app, name="convert")
app.add_typer(lineage.app, name="lineage")
app.command()(generate.generate)
app.command()(chat.chat)
app.command()(report.report)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"megatron-ko {__version__}")
        raise typer.Exit


@app.callback()
def _program(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Options of the program itself."""


def main() -> None:
    """Entry point: the command line."""
    run(app)


def run(program: Callable[[], object]) -> None:
    """Run the program. A KoError is printed in full and sets the exit code; anything else is a crash."""
    try:
        program()
    except KoError as error:
        _end(error)
    except OSError as error:
        if (explanation := repairable(error)) is None:
            raise
        _end(explanation)


def _end(error: KoError) -> NoReturn:
    print(f"megatron-ko: {error}", file=sys.stderr)
    sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
