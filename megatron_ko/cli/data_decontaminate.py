"""`megatron-ko data decontaminate`: removes documents that overlap with evaluation data."""

import json
import time
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from megatron_ko.cli.data_dedup import NewFolder
from megatron_ko.cli.data_options import (
    CORES,
    AsJson,
    Encoding,
    EncodingOption,
    InputFormatOption,
    Inputs,
    Key,
    MoreInputs,
    OutputFormat,
    OutputFormatOption,
    Restart,
    TextUnit,
    TextUnitOption,
    Workers,
)
from megatron_ko.cli.data_progress import bars_of_passes, say_how_to_resume, speed


class GramUnit(StrEnum):
    """What an n-gram consists of."""

    eojeol = "eojeol"
    char = "char"


# By unit: n-grams of this length in words or characters carry about as much information as 13 eojeol.
DEFAULT_SIZES = {GramUnit.eojeol: 13, GramUnit.char: 40}


def decontaminate(
    files: Inputs,
    against: Annotated[
        list[Path], typer.Option(metavar="FILE", help="Evaluation file (.jsonl .tsv .csv .parquet ...); repeatable.")
    ],
    output: NewFolder,
    more: MoreInputs = None,
    against_key: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY", help="Field with text of the evaluation files, or FILE:FIELD for one of them; repeatable."
        ),
    ] = None,
    unit: Annotated[GramUnit, typer.Option(help="eojeol, or characters without blanks.")] = GramUnit.eojeol,
    ngram: Annotated[int | None, typer.Option(min=1, help="Units in a row. [13 eojeol, 40 characters]")] = None,
    shortest: Annotated[
        int | None, typer.Option(min=1, help="Match shorter items as a whole, from this many units. [half of --ngram]")
    ] = None,
    json_key: Key = "text",
    text_unit: TextUnitOption = TextUnit.line,
    format: InputFormatOption = None,
    encoding: EncodingOption = Encoding.utf_8,
    output_format: OutputFormatOption = OutputFormat.jsonl_zst,
    workers: Workers = CORES,
    restart: Restart = False,
    as_json: AsJson = False,
) -> None:
    """Remove documents that share an n-gram with an item of an evaluation file.

    Case and punctuation are ignored. For each removed document, DIR/removed.jsonl.zst lists the items and the text in
    common. If you run the same command again after a kill, it continues.

    Example: megatron-ko data decontaminate --input web.jsonl --against kobest/*.jsonl --output clean/web --ngram 13
    """
    from megatron_ko.data.dedup.decontaminate import DecontaminateOptions
    from megatron_ko.data.dedup.decontaminate import decontaminate as run
    from megatron_ko.data.dedup.evaluation import NgramRule
    from megatron_ko.data.dedup.options import InputFiles, Resources
    from megatron_ko.data.dedup.work_folder import work_folder_of
    from megatron_ko.data.jobs.job import remove_job
    from megatron_ko.data.text.inputs import expand_inputs

    size = ngram or DEFAULT_SIZES[unit]
    paths = expand_inputs((*files, *(more or [])), format)
    options = DecontaminateOptions(
        input=InputFiles(paths, json_key, text_unit, format, encoding=encoding),
        output=output,
        against=expand_inputs(against),
        keys=tuple(against_key or ["text"]),
        grams=NgramRule(unit.value, size, shortest or max(1, size // 2)),
        suffix=f".{output_format.value}",
        resources=Resources(workers),
    )
    if restart:
        remove_job(work_folder_of(output))
    start = time.monotonic()
    with say_how_to_resume(work_folder_of(output)), bars_of_passes() as progress:
        manifest = run(options, progress)
    seconds = time.monotonic() - start
    if as_json:
        typer.echo(json.dumps({**manifest, "seconds": round(seconds, 3)}, ensure_ascii=False))
        return
    documents, sizes = manifest["documents"], manifest["bytes_of_text"]
    typer.echo(
        f"{output}: {documents['out']:,} of {documents['in']:,} documents stay, "
        f"{documents['removed']['contaminated']:,} share {size} {unit.value} with an evaluation item"
    )
    for file in manifest["evaluation"]["files"]:
        searched = file["items"] - file["too_short"]
        unsearched = f"; {file['too_short']:,} of {file['items']:,} were too short to search for"
        line = f"  {file['file']}: {file['found']:,} of {searched:,} texts found"
        typer.echo(line + (unsearched if file["too_short"] else ""))
    typer.echo(f"  what went is listed in {output}/removed.jsonl.zst")
    typer.echo(f"  {speed(sizes['in'], seconds)}, {seconds:.1f} s", err=True)
