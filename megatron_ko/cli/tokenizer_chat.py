"""`megatron-ko tokenizer chat`: sets, shows and checks the chat template of a tokenizer."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from megatron_ko.cli.data_options import AsJson


def chat(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of a tokenizer.")],
    set_to: Annotated[
        str | None,
        typer.Option("--set", metavar="PRESET|FILE", help="chatml, frankenstallm, keural, llama3, qwen3, or a .jinja."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check the chat template of a tokenizer, and show how it spells a conversation; with --set, first write it.

    A template is written only if it passes. Exit code 2 if a check fails.

    Example: megatron-ko tokenizer chat tokenizer --set chatml
    """
    from megatron_ko.data.tokenizer.chat_check import check_template, find_source
    from megatron_ko.data.tokenizer.chat_template import ChatTemplate, load_template, set_template
    from megatron_ko.data.tokenizer.tokenizer import load_tokenizer
    from megatron_ko.errors import TokenizerError

    tokenizer = load_tokenizer(folder)
    template = load_template(tokenizer) if set_to is None else ChatTemplate(find_source(set_to), tokenizer)
    report = check_template(template, tokenizer)
    if as_json:
        typer.echo(json.dumps(asdict(report), ensure_ascii=False))
    else:
        typer.echo(f"{folder}: chat template {report.sha256[:16]}")
        typer.echo(f"  an answer ends with {report.end!r}, id {report.end_id}")
        how = "by its marks" if report.marks_answers else "by rendering prompt and answer"
        typer.echo(f"  answers are found {how}")
        if not report.keeps_earlier_turns:
            typer.echo("  earlier turns are spelt otherwise later: such a conversation gives a row for each answer")
        for check in report.checks:
            example = "" if check.ok else f": {check.example}"
            typer.echo(f"  {'ok    ' if check.ok else 'FAILED'}  {check.name} ({check.tried}){example}")
        typer.echo("\n" + report.example)
    if not report.passed:
        failed = next(check for check in report.checks if not check.ok)
        raise TokenizerError(
            "the chat template cannot be trained on" + (": nothing was written" if set_to else ""),
            got=f"{failed.name}: {failed.example}",
            remedy="give the tokenizer what is missing, or choose another template: --set",
        )
    if set_to is not None:
        set_template(folder, template.source)
