"""`megatron-ko config`: show, check and describe run configurations."""

import json
from pathlib import Path
from typing import Annotated

import typer

from megatron_ko.config import check_world, dump, load_config, raise_problems, run_schema
from megatron_ko.config.checks.export import export_warning

app = typer.Typer(no_args_is_help=True, help="Show, check and describe run configurations.")

RunFile = Annotated[Path, typer.Argument(metavar="RUN.yaml", help="Run configuration.")]
Overrides = Annotated[list[str] | None, typer.Argument(metavar="[SECTION.KEY=VALUE]...", help="Values to override.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command()
def show(run_file: RunFile, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Print the configuration with all defaults, parent files and overrides resolved.

    Example: megatron-ko config show configs/runs/demo.yaml optim.lr=1e-3
    """
    config = load_config(run_file, overrides or [])
    typer.echo(config.model_dump_json(indent=2) if as_json else dump(config), nl=as_json)


@app.command()
def check(
    run_file: RunFile,
    overrides: Overrides = None,
    ranks: Annotated[int | None, typer.Option(min=1, help="Also check that it runs on this many ranks.")] = None,
    no_data: Annotated[bool, typer.Option("--no-data", help="The data is not on this machine.")] = False,
    as_json: AsJson = False,
) -> None:
    """Report all problems of a configuration, and the first problem of its data; exit code 2 if there is any.

    Example: megatron-ko config check configs/runs/demo.yaml --ranks 8
    """
    config = load_config(run_file, overrides or [])
    if ranks is not None:
        raise_problems(check_world(config, ranks), f"{run_file} on {ranks} ranks")
    found: dict[str, object] = {"ok": True, "file": str(run_file)}
    lines = [f"{run_file}: ok"]
    if (warning := export_warning(config.model)) is not None:
        found |= {"warnings": [warning]}
        lines.append(warning)
    if not no_data:
        from megatron_ko.data.training.preview import preview_data

        preview = preview_data(config)
        found |= {"epochs": preview.epochs}
        lines += [line for line in (preview.line(), preview.warning()) if line]
    typer.echo(json.dumps(found) if as_json else "\n".join(lines))


@app.command()
def schema() -> None:
    """Print the JSON Schema of run files, for completion and checks in editors.

    Example: megatron-ko config schema > run.schema.json
    """
    typer.echo(json.dumps(run_schema(), indent=2, ensure_ascii=False))
