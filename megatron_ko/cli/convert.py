"""`megatron-ko convert`: converts models from and to Hugging Face, and verifies each conversion."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from megatron_ko.artifacts.folders import expect_hugging_face
from megatron_ko.artifacts.native import AdapterRun, expect_model, find_adapters, find_pretrained
from megatron_ko.cli.convert_gguf import gguf
from megatron_ko.cli.which_checkpoint import Best, Step, chosen_step
from megatron_ko.errors import ConvertError
from megatron_ko.machine.threads import wait_without_spinning

if TYPE_CHECKING:
    from megatron_ko.convert.gates import Proof

app = typer.Typer(
    no_args_is_help=True,
    callback=wait_without_spinning,  # before a verb imports torch
    help="Convert models from and to Hugging Face, and verify them.",
)

NewFolder = Annotated[Path, typer.Argument(metavar="OUTPUT", help="Folder to write; it must not exist.")]
app.command("gguf")(gguf)
# What each shows: docs/convert.md.
ProofDepth = Annotated[
    Literal["quick", "full"],
    typer.Option("--proof", help="quick: tensors, tokenizer and one pass over text; full: more, and generation."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command("hf-import")
def hf_import(
    source: Annotated[Path, typer.Argument(metavar="DIR", help="Folder with config.json and safetensors.")],
    output: NewFolder,
    proof: ProofDepth = "full",
    as_json: AsJson = False,
) -> None:
    """Convert a Hugging Face folder to a native model. Nothing is written unless both compute the same.

    Example: megatron-ko convert hf-import SmolLM2-135M models/smollm2
    """
    expect_hugging_face(source)
    from megatron_ko.convert.hf_import import import_hf

    _tell(output, import_hf(source, output, proof), as_json)


@app.command("hf-export")
def hf_export(
    source: Annotated[Path, typer.Argument(metavar="DIR", help="Run directory, or a native model.")],
    output: Annotated[Path | None, typer.Argument(metavar="OUTPUT", help="Folder to write.")] = None,
    step: Step = None,
    best: Best = False,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16 or float16; default: as stored.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="DIR is a file in configs/; map it without weights.")
    ] = False,
    proof: ProofDepth = "full",
    as_json: AsJson = False,
) -> None:
    """Write a folder that transformers can load. Nothing is written unless both compute the same.

    Example: megatron-ko convert hf-export runs/demo exports/demo --dtype bfloat16
    """
    if dry_run:
        _dry_run(source, dtype or "bfloat16", as_json)
        return
    if output is None:
        raise typer.BadParameter("give the folder to write", param_hint="OUTPUT")
    expect_model(source)
    from megatron_ko.convert.hf_export import export_hf

    _tell(
        output, export_hf(find_pretrained(source, chosen_step(source, step, best)), output, dtype, depth=proof), as_json
    )


@app.command("upcycle")
def upcycle(
    source: Annotated[Path, typer.Argument(metavar="DIR", help="Run directory, or a native model, without experts.")],
    output: NewFolder,
    experts: Annotated[int, typer.Option(min=2, help="Experts per layer, each a copy of the feed-forward layer.")] = 8,
    top_k: Annotated[int, typer.Option(min=1, help="Experts per token.")] = 2,
    score: Annotated[str, typer.Option(help="softmax or sigmoid: how router logits become weights.")] = "softmax",
    expert_bias: Annotated[bool, typer.Option("--expert-bias", help="Balance by a bias; needs sigmoid.")] = False,
    step: Step = None,
    best: Best = False,
    proof: ProofDepth = "full",
    as_json: AsJson = False,
) -> None:
    """Turn a dense model into a mixture of experts. Nothing is written unless both compute the same.

    Train it with `checkpoint: {start_from: OUTPUT}` and `model: {from: OUTPUT/model.yaml}` in the run file.

    Example: megatron-ko convert upcycle runs/demo models/demo-moe --experts 8 --top-k 2
    """
    expect_model(source)
    from megatron_ko.config.load import build
    from megatron_ko.config.moe import MoeConfig
    from megatron_ko.convert.upcycle import upcycle as make

    fields = {"num_experts": experts, "top_k": top_k, "score": score, "expert_bias": expert_bias}
    moe = build(MoeConfig, fields, origin="the options")
    _tell(output, make(find_pretrained(source, chosen_step(source, step, best)), output, moe, depth=proof), as_json)


@app.command("merge")
def merge(
    words: Annotated[list[str], typer.Argument(metavar="DIR... OUTPUT", help="Models, and the folder to write.")],
    weights: Annotated[
        list[float] | None, typer.Option(metavar="SHARE...", help="Weight of each model; default: equal.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Average native models with the same network and tokenizer, tensor by tensor.

    Example: megatron-ko convert merge runs/decay-a runs/decay-b models/soup --weights 0.5 0.5
    """
    folders, shares = list(words), list(weights or [])
    if shares:  # what follows the first share came as arguments
        shares += [float(word) for word in folders if _is_number(word)]
        folders = [word for word in folders if not _is_number(word)]
    if len(folders) < 2:
        raise typer.BadParameter("give at least two models, and the folder to write", param_hint="DIR... OUTPUT")
    output = Path(folders[-1])
    for name in folders[:-1]:
        expect_model(Path(name))
    from megatron_ko.convert.merge import merge as make

    _tell(output, make([find_pretrained(Path(name)) for name in folders[:-1]], output, shares or None), as_json)


@app.command("merge-adapter")
def merge_adapter(
    source: Annotated[Path, typer.Argument(metavar="RUN", help="Directory of a run that has trained adapters.")],
    output: NewFolder,
    step: Step = None,
    best: Best = False,
    as_json: AsJson = False,
) -> None:
    """Put the adapters of a run into the weights that it started with. Nothing is written unless both compute the same.

    Example: megatron-ko convert merge-adapter runs/ko-1b-lora models/ko-1b-chat
    """
    found = _adapters(source, chosen_step(source, step, best))
    from megatron_ko.convert.merge_adapter import merge_adapter as make

    _tell(output, make(found, output), as_json)


@app.command("peft-export")
def peft_export(
    source: Annotated[Path, typer.Argument(metavar="RUN", help="Directory of a run that has trained adapters.")],
    output: NewFolder,
    base: Annotated[str | None, typer.Option(help="Name or folder of the model in transformers, for peft.")] = None,
    step: Step = None,
    best: Best = False,
    as_json: AsJson = False,
) -> None:
    """Write the adapters of a run as a folder for peft. Nothing is written unless it gives the same weights.

    Example: megatron-ko convert peft-export runs/ko-1b-lora exports/ko-1b-lora --base exports/ko-1b
    """
    found = _adapters(source, chosen_step(source, step, best))
    from megatron_ko.convert.peft_export import export_peft

    _tell(output, export_peft(found, output, base), as_json)


@app.command("peft-import")
def peft_import(
    source: Annotated[Path, typer.Argument(metavar="DIR", help="Folder with adapter_config.json, written by peft.")],
    base: Annotated[Path, typer.Argument(metavar="BASE", help="Native model, or run, of the same weights.")],
    output: NewFolder,
    as_json: AsJson = False,
) -> None:
    """Put adapters that peft has trained into the native weights of their model.

    Example: megatron-ko convert peft-import adapters/chat models/smollm2 models/smollm2-chat
    """
    expect_model(base)
    from megatron_ko.convert.peft_import import import_peft

    _tell(output, import_peft(source, find_pretrained(base), output), as_json)


def _adapters(source: Path, step: int | None) -> AdapterRun:
    expect_model(source)
    found = find_adapters(source, step)
    if found is None:
        raise ConvertError("there are no adapters", got=source, expected="a run that was configured with `adapter`")
    return found


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return not Path(word).exists()


def _dry_run(config: Path, dtype: str, as_json: bool) -> None:
    from dataclasses import asdict

    from megatron_ko.config import load_model_config
    from megatron_ko.convert.dry_run import dry_run
    from megatron_ko.convert.gates import gate_table
    from megatron_ko.convert.hf_export import type_of

    found = dry_run(load_model_config(config), type_of(dtype))
    if as_json:
        typer.echo(json.dumps(asdict(found)))
        return
    typer.echo(f"{config} as {found.architecture}, {dtype}")
    typer.echo(f"  {found.native} native tensors -> {found.tensors:,} tensors of {found.parameters:,} numbers")
    typer.echo(f"  {found.bytes / 1e9:.2f} GB in {found.files} file{'s' if found.files > 1 else ''}")
    typer.echo(gate_table(found.gates))


def _tell(output: Path, proof: "Proof", as_json: bool) -> None:
    from megatron_ko.convert.gates import gate_table

    if as_json:
        typer.echo(json.dumps({"output": str(output), **proof.to_json()}))
        return
    typer.echo(f"{output}: {proof.verdict}")
    typer.echo(gate_table(proof.gates))
