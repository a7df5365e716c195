"""`megatron-ko convert`: models between this project and Hugging Face, each with its proof."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from megatron_ko.cli.convert_gguf import gguf

if TYPE_CHECKING:
    from megatron_ko.convert.verify import LogitGate

app = typer.Typer(no_args_is_help=True, help="Models between this project and Hugging Face, each with its proof.")

Output = Annotated[Path, typer.Argument(metavar="OUTPUT", help="Folder to write; it must not exist.")]
app.command("gguf")(gguf)
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


@app.command("upcycle")
def upcycle(
    source: Annotated[Path, typer.Argument(metavar="DIR", help="Run directory, or a native model, without experts.")],
    output: Output,
    experts: Annotated[int, typer.Option(min=2, help="Experts of a layer; all start as its feed-forward layer.")] = 8,
    top_k: Annotated[int, typer.Option(min=1, help="Experts that compute one token.")] = 2,
    score: Annotated[str, typer.Option(help="softmax or sigmoid: from router logits to weights.")] = "softmax",
    expert_bias: Annotated[bool, typer.Option("--expert-bias", help="Balance by a bias; needs sigmoid.")] = False,
    step: Annotated[int | None, typer.Option(help="Checkpoint of a run; default: the newest valid one.")] = None,
    as_json: AsJson = False,
) -> None:
    """Make a mixture of experts of a dense model. Nothing is written unless both give the same logits.

    Train it with `checkpoint: {start_from: OUTPUT}` and `model: {from: OUTPUT/model.yaml}` in the run file.

    Example: megatron-ko convert upcycle runs/demo models/demo-moe --experts 8 --top-k 2
    """
    from megatron_ko.config.load import build
    from megatron_ko.config.moe import MoeConfig
    from megatron_ko.convert.upcycle import upcycle as make
    from megatron_ko.models.pretrained import find_pretrained

    fields = {"num_experts": experts, "top_k": top_k, "score": score, "expert_bias": expert_bias}
    moe = build(MoeConfig, fields, origin="the options")
    _tell(output, make(find_pretrained(source, step), output, moe), as_json)


def _tell(output: Path, gate: "LogitGate", as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps({"output": str(output), **gate.describe()}))
        return
    typer.echo(f"{output}: the same model")
    typer.echo(f"  logits     differ by at most {gate.max_difference:.1e} at {gate.positions:,} positions")
    typer.echo(f"  top token  equal at {gate.top1:.1%}")
