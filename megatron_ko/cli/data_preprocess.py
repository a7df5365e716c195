"""`megatron-ko data preprocess`: encodes text into indexed tokens."""

import json
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from megatron_ko.cli.data_options import (
    CORES,
    AsJson,
    Encoding,
    EncodingOption,
    InputFormatOption,
    Inputs,
    MoreInputs,
    Restart,
    TextUnit,
    TextUnitOption,
    Workers,
)
from megatron_ko.cli.data_progress import bar_over_bytes, say_how_to_resume, speed

if TYPE_CHECKING:
    from megatron_ko.data.tokens.merge import IndexedOutput
    from megatron_ko.data.tokens.preprocess import PreprocessOptions


def output_prefix(value: str) -> Path:
    """The output prefix; a folder is refused."""
    if value.endswith("/"):
        from megatron_ko.errors import DataError

        raise DataError(
            f"the output is a folder: {value}",
            expected="the beginning of the names of the files",
            remedy=f"--output {value}corpus",
        )
    return Path(value)


class Unencodable(StrEnum):
    """What becomes of documents with characters that the vocabulary has no tokens for."""

    REFUSE = "refuse"
    REPLACE = "replace"
    KEEP = "keep"


NewPrefix = Annotated[
    Path, typer.Option(metavar="PREFIX", parser=output_prefix, help="Writes PREFIX.bin, .idx and .manifest.json.")
]


def preprocess(
    files: Inputs,
    tokenizer: Annotated[Path, typer.Option(metavar="DIR", help="Folder of the tokenizer.")],
    output: NewPrefix,
    more: MoreInputs = None,
    workers: Workers = CORES,
    json_key: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY", help="Text field; if repeated, each one writes PREFIX_KEY. [text]"),
    ] = None,
    append_eod: Annotated[bool, typer.Option(help="End every document with the end-of-document token.")] = True,
    bos: Annotated[bool, typer.Option("--bos", help="Begin every document with the tokenizer's bos token.")] = False,
    text_unit: TextUnitOption = TextUnit.line,
    format: InputFormatOption = None,
    encoding: EncodingOption = Encoding.utf_8,
    shards: Annotated[int | None, typer.Option(min=1, help="Write PREFIX-00000-of-N ..., N shards.")] = None,
    shard_tokens: Annotated[int | None, typer.Option(min=1, help="Write shards of about this many tokens.")] = None,
    rank: Annotated[int, typer.Option(min=0, help="Number of this process among --size.")] = 0,
    size: Annotated[int, typer.Option(min=1, help="Processes that share the work; then run data merge.")] = 1,
    verify: Annotated[bool, typer.Option("--verify", help="Decode samples of the output and compare.")] = False,
    unencodable: Annotated[
        Unencodable, typer.Option(help="Documents with characters that have no tokens; replace puts U+FFFD.")
    ] = Unencodable.REFUSE,
    restart: Restart = False,
    as_json: AsJson = False,
) -> None:
    """Encode text into Megatron's indexed format. The output does not depend on workers, ranks or interruptions.

    Records that are not documents are counted and written to PREFIX.rejected.jsonl with the reason. Finished work is
    kept in PREFIX.parts until the end: if you run the same command again after a kill, it continues.

    Example: megatron-ko data preprocess --input corpus.jsonl --tokenizer tokenizer --output data/corpus --workers 8
    """
    from megatron_ko.data.jobs.job import remove_job
    from megatron_ko.data.text.inputs import expand_inputs
    from megatron_ko.data.tokens.merge import job_folder
    from megatron_ko.data.tokens.preprocess import PreprocessOptions

    if shards is not None and shard_tokens is not None:
        raise typer.BadParameter("give --shards or --shard-tokens, not both")
    if rank >= size:
        raise typer.BadParameter(f"--rank {rank} must be below --size {size}")
    if restart:
        remove_job(job_folder(output))
    options = PreprocessOptions(
        inputs=expand_inputs((*files, *(more or [])), format),
        tokenizer=tokenizer,
        output=output,
        workers=workers,
        keys=tuple(json_key or ["text"]),
        append_eod=append_eod,
        bos=bos,
        text_unit=text_unit,
        format=format,
        encoding=encoding,
        shards=shards,
        shard_tokens=shard_tokens,
        rank=rank,
        size=size,
        verify=verify,
        unencodable=unencodable.value,
    )
    run_and_report(options, as_json)


def run_and_report(options: "PreprocessOptions", as_json: bool = False) -> None:
    """Preprocess with a progress bar, and print what was written."""
    import time

    from megatron_ko.data.tokens.merge import job_folder
    from megatron_ko.data.tokens.preprocess import preprocess as run

    start = time.monotonic()
    with (
        say_how_to_resume(job_folder(options.output)),
        bar_over_bytes("encoding", options.inputs, options.size) as progress,
    ):
        written = run(options, progress)
    if options.size == 1:
        report_outputs(written, time.monotonic() - start, as_json)
    elif as_json:
        typer.echo(json.dumps({"finished": options.rank, "of": options.size}))
    else:
        typer.echo(
            f"rank {options.rank} of {options.size} is finished; "
            f"when all are: megatron-ko data merge --output {options.output}"
        )


def report_outputs(written: "list[IndexedOutput]", seconds: float, as_json: bool) -> None:
    """Print what was written, and how fast."""
    if as_json:
        outputs = [{"prefix": str(one.prefix), **json.loads(one.manifest.to_json())} for one in written]
        for entry, one in zip(outputs, written, strict=True):
            if one.verified:
                entry["verified"] = {"decoded": one.verified.decoded, "exact": one.verified.exact}
        result = {**outputs[0], "outputs": [str(one.prefix) for one in written], "seconds": round(seconds, 3)}
        typer.echo(json.dumps(result if len(outputs) == 1 else {**result, "all": outputs}, ensure_ascii=False))
        return
    for one in written:
        manifest = one.manifest
        typer.echo(
            f"{one.prefix}: {manifest.documents:,} documents, {manifest.tokens:,} tokens ({manifest.dtype}), "
            f"{manifest.bytes / max(1, manifest.tokens):.2f} bytes a token"
        )
        if manifest.rejected:
            reasons = ", ".join(f"{number:,} {reason}" for reason, number in manifest.rejected_reasons.items())
            typer.echo(f"  {manifest.rejected:,} records rejected: {reasons}; see {one.prefix}.rejected.jsonl")
        if one.manifest.unencodable:
            named = ", ".join(f"{name} {count:,}" for name, count in manifest.unencodable.items() if name[0] == "U")
            typer.echo(f"  {manifest.unencodable['documents']:,} documents have characters without a token: {named}")
        if one.verified:
            typer.echo(f"  {one.verified.decoded:,} samples decoded, {one.verified.exact:,} gave exactly the text")
            if one.verified.different:
                numbers = ", ".join(map(str, one.verified.different))
                typer.echo(f"  documents that do not come back, the first: {numbers}")
    documents = sum(one.manifest.documents for one in written)
    size = sum(one.manifest.bytes for one in written)
    typer.echo(f"  {documents / seconds:,.0f} documents/s, {speed(size, seconds)}, {seconds:.1f} s", err=True)
