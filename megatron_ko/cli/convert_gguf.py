"""`megatron-ko convert gguf`: writes files for llama.cpp and Ollama, and verifies each one."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from megatron_ko.artifacts.folders import expect_either
from megatron_ko.errors import DataError

if TYPE_CHECKING:
    from megatron_ko.convert.gguf.export import GgufExport


def gguf(
    source: Annotated[
        Path, typer.Argument(metavar="DIR", help="Hugging Face folder; or a run directory or native model.")
    ],
    output: Annotated[Path, typer.Argument(metavar="OUTPUT", help="Folder to write.")],
    types: Annotated[str, typer.Option(help="f32, f16, bf16, q8_0, q5_k_m, q4_k_m; one file each.")] = "q8_0,q4_k_m",
    text: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help="Held-out text (UTF-8) for the comparison; default: built-in."),
    ] = None,
    accept_ties: Annotated[
        bool, typer.Option("--accept-ties", help="Unigram: accept other pieces with exactly the same probability.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Write GGUF files and a Modelfile. Nothing is written unless llama.cpp and transformers compute the same.

    Example: megatron-ko convert gguf exports/demo exports/demo-gguf --types f16,q4_k_m
    """
    expect_either(source)
    from megatron_ko.convert.gguf.export import export_gguf

    try:
        held_out = text.read_text(encoding="utf-8") if text is not None else None
    except UnicodeDecodeError as error:
        raise DataError("--text is not valid UTF-8", got=f"{text}: {error}", expected="text in UTF-8") from None
    kinds = [kind.strip().lower() for kind in types.split(",")]
    exported = export_gguf(source, output, kinds, held_out, accept_ties)
    _tell(output, exported, as_json)
    if exported.refused:
        raise typer.Exit(2)  # the types that passed are there; not all that was asked for


def _tell(output: Path, exported: "GgufExport", as_json: bool) -> None:
    from megatron_ko.convert.gates import gate_table

    if as_json:
        typer.echo(json.dumps({"output": str(output), **exported.to_json()}, ensure_ascii=False))
        return
    typer.echo(f"{output}: {exported.proof.verdict}")
    for one in exported.files:
        fallbacks = ", ".join(f"{number} tensors {kind}" for kind, number in one.fallbacks.items())
        rest = f"; rows that the type cannot take: {fallbacks}" if fallbacks else ""
        typer.echo(f"  {one.name}  {one.size / 1e6:,.1f} MB, {one.bits:.2f} bits a weight{rest}")
    ollama = exported.ollama
    kind = f", {ollama.format}" if ollama.format else ""
    typer.echo(f"  Modelfile for Ollama{kind}" if ollama.modelfile else "  no Modelfile for Ollama")
    for note in ollama.notes:
        typer.echo(f"    {note}")
    typer.echo(gate_table(exported.proof.gates))
    if exported.refused:
        types = sorted({gate.name.partition(":")[0] for gate in exported.refused})
        typer.echo(f"not written, because a gate failed: {', '.join(types)}")
        typer.echo(gate_table(exported.refused))
