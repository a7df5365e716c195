"""`megatron-ko data chat`, `preference` and `preview`: conversations and preferences to tokens with marks."""

import json
import time
from collections.abc import Callable
from enum import StrEnum
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from megatron_ko.cli.data_options import CORES, AsJson, InputFormatOption, Inputs, MoreInputs, Restart, Workers
from megatron_ko.cli.data_preprocess import NewPrefix
from megatron_ko.cli.data_progress import bar_over_bytes, say_how_to_resume

if TYPE_CHECKING:
    from megatron_ko.data.chat.preprocess import ChatOptions
    from megatron_ko.data.chat.preview import RowView
    from megatron_ko.data.tokens.merge import IndexedOutput


class TrainOn(StrEnum):
    """Which tokens of a conversation are trained."""

    assistant = "assistant"
    last = "last"
    all = "all"


class TooLong(StrEnum):
    """What becomes of a conversation that is too long."""

    drop = "drop"
    turn = "turn"
    cut = "cut"


class TooLongPair(StrEnum):
    """What becomes of a preference that is too long."""

    drop = "drop"
    cut = "cut"


TokenizerFolder = Annotated[Path, typer.Option(metavar="DIR", help="Folder of the tokenizer, with a chat template.")]
SequenceLength = Annotated[
    int | None, typer.Option(min=2, help="Sequence length of the run; longer ones are too long. Default: none is.")
]
Renamed = Annotated[
    list[str] | None, typer.Option("--map", metavar="FIELD=NAME", help="Read a field by another name; repeatable.")
]


def chat(
    files: Inputs,
    tokenizer: TokenizerFolder,
    output: NewPrefix,
    more: MoreInputs = None,
    workers: Workers = CORES,
    train_on: Annotated[
        TrainOn, typer.Option(help="Tokens that are trained: of all answers, of the last one, or all.")
    ] = TrainOn.assistant,
    sequence_length: SequenceLength = None,
    too_long: Annotated[
        TooLong, typer.Option(help="Leave it out, end it with the last answer that fits, or cut it.")
    ] = TooLong.drop,
    renamed: Renamed = None,
    format: InputFormatOption = None,
    restart: Restart = False,
    as_json: AsJson = False,
) -> None:
    """Encode conversations for SFT. What the model answers is trained, the rest is context.

    Fields decide the form: messages; conversations; instruction, output; or prompt, completion. Records that cannot be
    trained on are written to PREFIX.rejected.jsonl with the reason.

    Example: megatron-ko data chat --input chat.jsonl --tokenizer tokenizer --output data/chat
    """
    from megatron_ko.data.chat.preprocess import ChatOptions
    from megatron_ko.data.chat.rows import RowOptions
    from megatron_ko.data.text.inputs import expand_inputs

    options = ChatOptions(
        inputs=expand_inputs((*files, *(more or [])), format),
        tokenizer=tokenizer,
        output=output,
        preference=False,
        workers=workers,
        rows=RowOptions(train_on.value, sequence_length, too_long.value),
        renamed=_pairs(renamed or []),
        format=format,
    )
    _encode(options, restart, as_json)


def preference(
    files: Inputs,
    tokenizer: TokenizerFolder,
    output: NewPrefix,
    more: MoreInputs = None,
    workers: Workers = CORES,
    sequence_length: SequenceLength = None,
    too_long: Annotated[TooLongPair, typer.Option(help="Leave it out, or cut its answers.")] = TooLongPair.drop,
    renamed: Renamed = None,
    format: InputFormatOption = None,
    restart: Restart = False,
    as_json: AsJson = False,
) -> None:
    """Encode preferences for DPO, ORPO, SimPO or KTO: two answers of which one is better, or one with a verdict.

    Fields decide the form: prompt, chosen, rejected; chosen and rejected as whole conversations; or prompt, completion,
    label. Both answers of a pair share a training sample: together they must fit into --sequence-length.

    Example: megatron-ko data preference --input pairs.jsonl --tokenizer tokenizer --output data/pairs
    """
    from megatron_ko.data.chat.preprocess import ChatOptions
    from megatron_ko.data.chat.rows import RowOptions
    from megatron_ko.data.text.inputs import expand_inputs

    options = ChatOptions(
        inputs=expand_inputs((*files, *(more or [])), format),
        tokenizer=tokenizer,
        output=output,
        preference=True,
        workers=workers,
        rows=RowOptions("assistant", sequence_length, too_long.value),
        renamed=_pairs(renamed or []),
        format=format,
    )
    _encode(options, restart, as_json)


def preview(
    prefix: Annotated[Path, typer.Argument(metavar="PREFIX", help="What data chat or data preference wrote.")],
    tokenizer: TokenizerFolder,
    rows: Annotated[int, typer.Option(min=1, help="Rows to show.")] = 3,
    as_json: AsJson = False,
) -> None:
    """Show what rows train: trained tokens in colour, with their ids.

    Example: megatron-ko data preview data/chat --tokenizer tokenizer --rows 1
    """
    from dataclasses import asdict

    from megatron_ko.data.chat.preview import preview_rows
    from megatron_ko.data.tokenizer.tokenizer import load_tokenizer

    views = preview_rows(prefix, tokenizer, rows)
    if as_json:
        typer.echo(json.dumps({"rows": [asdict(view) for view in views]}, ensure_ascii=False))
        return
    decoder = load_tokenizer(tokenizer)
    for view in views:
        _show(view, decoder.decode)


def _pairs(renamed: list[str]) -> dict[str, str]:
    pairs = [text.partition("=") for text in renamed]
    if wrong := [text for text, (field, equals, name) in zip(renamed, pairs, strict=True) if not (field and name)]:
        raise typer.BadParameter(f"{wrong[0]!r} is no FIELD=NAME", param_hint="--map")
    names = [name for _, _, name in pairs]
    if doubled := {name for name in names if names.count(name) > 1}:
        raise typer.BadParameter(f"two fields are to be called {', '.join(doubled)}", param_hint="--map")
    return {field: name for field, _, name in pairs}


def _encode(options: "ChatOptions", restart: bool, as_json: bool) -> None:
    from megatron_ko.data.chat.preprocess import preprocess_chat
    from megatron_ko.data.jobs.job import remove_job
    from megatron_ko.data.tokens.merge import job_folder

    folder = job_folder(options.output)
    if restart:
        remove_job(folder)
    start = time.monotonic()
    with say_how_to_resume(folder), bar_over_bytes("encoding", options.inputs, 1) as progress:
        written = preprocess_chat(options, progress)
    _report(written, time.monotonic() - start, as_json)


def _report(written: "IndexedOutput", seconds: float, as_json: bool) -> None:
    manifest = written.manifest
    if as_json:
        result = {"prefix": str(written.prefix), **json.loads(manifest.to_json()), "seconds": round(seconds, 3)}
        typer.echo(json.dumps(result, ensure_ascii=False))
        return
    assert manifest.chat is not None
    noun = {"chat": "conversations", "pairs": "pairs", "verdicts": "answers with a verdict"}[manifest.chat.kind]
    share = manifest.trained_tokens / max(1, manifest.tokens)
    typer.echo(
        f"{written.prefix}: {manifest.records['records']:,} {noun}, {manifest.documents:,} documents, "
        f"{manifest.tokens:,} tokens, {manifest.trained_tokens:,} of them trained ({share:.1%})"
    )
    for name, count in manifest.records.items():
        if name != "records":
            typer.echo(f"  {count:,} {name}")
    if manifest.rejected:
        reasons = ", ".join(f"{number:,} {reason}" for reason, number in manifest.rejected_reasons.items())
        typer.echo(f"  {manifest.rejected:,} records rejected: {reasons}; see {written.prefix}.rejected.jsonl")
    typer.echo(f"  {manifest.documents / seconds:,.0f} documents/s, {seconds:.1f} s", err=True)


def _show(view: "RowView", decode: Callable[[list[int]], str]) -> None:
    """A row in runs of tokens of one kind: trained ones green, or red if the answer is the worse one; others grey."""
    verdict = ", the answer to another prompt" if view.mismatched else "" if view.good else ", the worse answer"
    typer.echo(f"row {view.row}{verdict}: {len(view.ids)} tokens, {sum(view.trained)} of them trained")
    for trained, run in groupby(zip(view.ids, view.trained, strict=True), key=lambda pair: pair[1]):
        ids = [token for token, _ in run]
        colour = ("green" if view.good else "red") if trained else "bright_black"
        label = "trained" if trained else "context"
        typer.secho(f"  {label}  {decode(ids)!r}", fg=colour)
        typer.secho(f"           {' '.join(map(str, ids))}", dim=True)
