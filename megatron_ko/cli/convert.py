"""`megatron-ko convert`: models between this project and Hugging Face, each with its proof."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from megatron_ko.convert.verify import LogitGate

app = typer.Typer(no_args_is_help=True, help="Models between this project and Hugging Face, each with its proof.")

Output = Annotated[Path, typer.Argument(metavar="OUTPUT", help="Folder to write; it must not exist.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command("hf-import")
def hf_import(
    source: Annotated[Path, typer.Argument(metavar="DIR", help="Folder with config.json and safetensors.")],
    output: Output,
    as_json: AsJson = False,
) -> None:
    """Make a native model of a Hugging Face folder. Nothing is written unless both give the same logits.

    Example: megatron-ko convert hf-import SmolLM2-135M models/smollm2
    """
    from megatron_ko.convert.hf_import import import_hf

    _tell(output, import_hf(source, output), as_json)


@app.command("hf-export")
def hf_export(
    source: Annotated[Path, typer.Argument(metavar="DIR", help="Run directory, or a native model.")],
    output: Output,
    step: Annotated[int | None, typer.Option(help="Checkpoint of a run; default: the newest valid one.")] = None,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16 or float16; default: as stored.")] = None,
    as_json: AsJson = False,
) -> None:
    """Write a folder that transformers loads. Nothing is written unless both give the same logits.

    Example: megatron-ko convert hf-export runs/demo exports/demo --dtype bfloat16
    """
    from megatron_ko.convert.hf_export import export_hf
    from megatron_ko.models.pretrained import find_pretrained

    _tell(output, export_hf(find_pretrained(source, step), output, dtype), as_json)


def _tell(output: Path, gate: "LogitGate", as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps({"output": str(output), **gate.describe()}))
        return
    typer.echo(f"{output}: the same model")
    typer.echo(f"  logits     differ by at most {gate.max_difference:.1e} at {gate.positions:,} positions")
    typer.echo(f"  top token  equal at {gate.top1:.1%}")
