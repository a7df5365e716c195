"""Options shared by several data commands."""

import os
from pathlib import Path
from typing import Annotated

import typer

from megatron_ko.data.text.formats import Encoding, InputFormat, OutputFormat, TextUnit

CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

Inputs = Annotated[
    list[Path],
    typer.Option(
        "--input",
        metavar="FILE...",
        help="Files, folders, patterns in quotes, - or hf:OWNER/NAME. "
        ".txt .jsonl .json .csv .tsv .wet, also .gz .zst; .parquet .arrow.",
    ),
]
MoreInputs = Annotated[list[Path] | None, typer.Argument(metavar="[FILE]...", help="More --input files.")]
Key = Annotated[str, typer.Option(metavar="KEY", help="Text field or column.")]
TextUnitOption = Annotated[TextUnit, typer.Option(help="What is a document in a .txt file.")]
InputFormatOption = Annotated[
    InputFormat | None, typer.Option("--format", help="Format of all inputs; default: by suffix.")
]
EncodingOption = Annotated[
    Encoding, typer.Option(help="Encoding of text inputs; auto: by mark, else UTF-8, else CP949 (EUC-KR), per file.")
]
OutputFormatOption = Annotated[OutputFormat, typer.Option(help="Format of the output files.")]
Workers = Annotated[int, typer.Option(min=1, help="Processes; default: one per core.")]
Restart = Annotated[bool, typer.Option("--restart", help="Discard the results of an unfinished run.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
