"""`megatron-ko plan`: exact parameter counts and FLOPs from a configuration."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from megatron_ko.config import load_model_config
from megatron_ko.config.checks.layout import check_tensor_size, tensor_sizes
from megatron_ko.config.problems import raise_problems
from megatron_ko.plan.flops import CONVENTION, flops_per_token
from megatron_ko.plan.params import ParameterCount, count_parameters, padding_parameters

app = typer.Typer(no_args_is_help=True, help="Compute parameters and FLOPs from a configuration.")


@app.callback()
def _group() -> None:
    """Compute parameters and FLOPs from a configuration."""


@app.command()
def params(
    file: Annotated[Path, typer.Argument(metavar="FILE.yaml", help="Run configuration, or a file of configs/models.")],
    tensor: Annotated[int, typer.Option(min=1, help="Tensor-parallel ranks that the vocabulary is padded for.")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Print the number of parameters by group, without building the model.

    The vocabulary is counted as published. Padding rows, which give all tensor-parallel ranks the same number of rows,
    are printed separately: they are never trained, and are not exported.

    Example: megatron-ko plan params configs/models/ko-1b.yaml --json
    """
    model = load_model_config(file)
    raise_problems(list(check_tensor_size(model, tensor)), str(file))
    count = count_parameters(model)
    if as_json:
        numbers = {"total": count.total, "active": count.active, "groups": count.groups}
        typer.echo(json.dumps(numbers | {"active_groups": count.active_groups}))
        return
    _print_table(file, count)
    length = model.max_position_embeddings
    padding, rows = padding_parameters(model, tensor), model.padded_vocab_size(tensor)
    typer.echo(f"vocabulary: {model.vocab_size:,} rows; {rows:,} when padded for tensor {tensor} (+{padding:,})")
    typer.echo(f"training:   {flops_per_token(model, length) / 1e9:.3f} GFLOP a token at {length:,} tokens")
    typer.echo(f"            ({CONVENTION})")


@app.command()
def models(
    files: Annotated[list[Path], typer.Argument(metavar="FILE.yaml...", help="Model files, or run configurations.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Print a Markdown table with one line per model: shape, parameters, compute, possible tensor-parallel sizes.

    Example: megatron-ko plan models configs/models/*.yaml
    """
    rows = [_summary(file) for file in files]
    if as_json:
        typer.echo(json.dumps(rows))
        return
    texts = [[_cell(value) for value in row.values()] for row in sorted(rows, key=lambda row: row["parameters"])]
    rule = ["---" if isinstance(value, str) else "---:" for value in rows[0].values()]
    for line in (list(rows[0]), rule, *texts):
        typer.echo(f"| {' | '.join(line)} |")


def _summary(file: Path) -> dict[str, Any]:
    model = load_model_config(file)
    count = count_parameters(model)
    return {
        "model": file.stem,
        "family": model.family,
        "layers": model.num_layers,
        "width": model.hidden_size,
        "heads": f"{model.num_attention_heads} / {model.query_groups} x {model.kv_channels}",
        "vocabulary": model.vocab_size,
        "context": model.max_position_embeddings,
        "parameters": count.total,
        "active": count.active,
        "GFLOP a token": round(flops_per_token(model, model.max_position_embeddings) / 1e9, 2),
        "tensor sizes": ", ".join(map(str, tensor_sizes(model))),
    }


def _cell(value: object) -> str:
    return value if isinstance(value, str) else f"{value:,}"


def _print_table(file: Path, count: ParameterCount) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"parameters of {file.name}", title_justify="left")
    table.add_column("group")
    for name in ("parameters", "share", "active"):
        table.add_column(name, justify="right")
    for name, number in count.groups.items():
        share, last = f"{number / count.total:.1%}", name == "output_layer"
        table.add_row(name, f"{number:,}", share, f"{count.active_groups[name]:,}", end_section=last)
    table.add_row("total", f"{count.total:,}", "100.0%", f"{count.active:,}", style="bold")
    Console().print(table)
