"""`megatron-ko data dedup`: removes exact and near duplicates across all sources."""

import json
import time
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

if TYPE_CHECKING:
    from megatron_ko.data.dedup.dedup import DedupResult


class Keep(StrEnum):
    """Which document of a cluster is kept."""

    first = "first"
    longest = "longest"
    priority = "priority"


_SHOWN_PAIRS = 5
NewFolder = Annotated[Path, typer.Option(metavar="DIR", help="New folder: one file per input, manifest, report.")]
Memory = Annotated[int, typer.Option(min=1, metavar="MB", help="Memory per process for sorting.")]


def dedup(
    files: Inputs,
    output: NewFolder,
    more: MoreInputs = None,
    against: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="Existing corpus (repeatable): it counts as seen, and is not written again."),
    ] = None,
    exact: Annotated[
        str, typer.Option(metavar="LEVEL,...", help="Exact duplicates of: document, paragraph, line; or none.")
    ] = "document",
    near: Annotated[bool, typer.Option("--near", help="Near duplicates too, by MinHash.")] = False,
    shingle: Annotated[str, typer.Option(metavar="UNIT:N", help="char:N or word:N.")] = "char:5",
    threshold: Annotated[float, typer.Option(help="Minimum Jaccard similarity of near duplicates.")] = 0.45,
    bands: Annotated[int | None, typer.Option(help="Number of bands, with --rows; default: by threshold.")] = None,
    rows: Annotated[int | None, typer.Option(help="Signature values per band.")] = None,
    normalise: Annotated[
        str, typer.Option(metavar="STEP,...", help="Normalised for comparison: nfc, case, space, punctuation; or none.")
    ] = "nfc,space",
    keep: Annotated[
        Keep, typer.Option(help="The first duplicate, the longest, or the longest of the source named first.")
    ] = Keep.first,
    min_characters: Annotated[int, typer.Option(min=1, help="Shorter paragraphs and lines are kept.")] = 30,
    json_key: Key = "text",
    text_unit: TextUnitOption = TextUnit.line,
    format: InputFormatOption = None,
    encoding: EncodingOption = Encoding.utf_8,
    output_format: OutputFormatOption = OutputFormat.jsonl_zst,
    workers: Workers = CORES,
    memory_mb: Memory = 512,
    restart: Restart = False,
    as_json: AsJson = False,
) -> None:
    """Remove duplicates within and across all inputs. The rest is written unchanged, in order, one file per input.

    A document is removed only if a kept one has the same text or is at least --threshold similar to it; both are listed
    in DIR/removed.jsonl.zst. Finished work is kept in DIR.parts until the end: if you run the same command again after
    a kill, it continues. The output does not depend on --workers or --memory-mb.

    Example: megatron-ko data dedup --input web.jsonl.zst books.parquet --output clean/unique --near --workers 8
    """
    from megatron_ko.data.dedup.dedup import dedup as run
    from megatron_ko.data.dedup.lsh import check_bands
    from megatron_ko.data.dedup.normalise import parse_normalisation
    from megatron_ko.data.dedup.options import DedupOptions, InputFiles, Near, Resources
    from megatron_ko.data.dedup.shingles import parse_shingles
    from megatron_ko.data.dedup.work_folder import work_folder_of
    from megatron_ko.data.jobs.job import remove_job
    from megatron_ko.data.text.inputs import expand_inputs

    existing = expand_inputs(against or ())
    paths = (*existing, *expand_inputs((*files, *(more or [])), format))
    options = DedupOptions(
        input=InputFiles(paths, json_key, text_unit, format, len(existing), encoding),
        output=output,
        levels=tuple(listed(exact)),
        near=Near(parse_shingles(shingle), threshold, check_bands(bands, rows, threshold)) if near else None,
        normalisation=parse_normalisation(listed(normalise)),
        keep=keep.value,
        least_characters=min_characters,
        suffix=f".{output_format.value}",
        resources=Resources(workers, memory_mb << 20),
    )
    if restart:
        remove_job(work_folder_of(output))
    start = time.monotonic()
    with say_how_to_resume(work_folder_of(output)), bars_of_passes() as progress:
        result = run(options, progress)
    seconds = time.monotonic() - start
    if as_json:
        whole = {**result.manifest, "report": result.report, "seconds": round(seconds, 3)}
        typer.echo(json.dumps(whole, ensure_ascii=False))
        return
    _tell(output, result, seconds)


def listed(text: str) -> list[str]:
    """The items of a comma-separated list; "none" alone means an empty list."""
    words = [word.strip() for word in text.split(",") if word.strip()]
    return [] if words == ["none"] else words


def _tell(output: Path, result: "DedupResult", seconds: float) -> None:
    manifest, report = result.manifest, result.report
    documents, sizes = manifest["documents"], manifest["bytes_of_text"]
    gone = ", ".join(f"{number:,} {reason}" for reason, number in documents["removed"].items() if number)
    typer.echo(
        f"{output}: {documents['out']:,} of {documents['in']:,} documents stay, "
        f"{sizes['out'] / 1e6:,.1f} of {sizes['in'] / 1e6:,.1f} MB\n"
        f"  removed    {gone or 'nothing'}"
    )
    if against := manifest.get("against"):
        number = sum(entry["documents"] for entry in against["inputs"])
        found = against["removed"]
        typer.echo(
            f"  against    {found['exact']:,} exact, {found['near']:,} near of them are in the {number:,} documents "
            "of the existing corpus"
        )
    for level, number in manifest["pieces_removed"].items():
        typer.echo(f"  {level}s  {number:,} removed, {sizes['removed'][f'{level}s'] / 1e6:,.1f} MB")
    if report["clusters"]["number"]:
        spread = ", ".join(f"{number:,} of {size}" for size, number in report["clusters"]["sizes"].items())
        typer.echo(f"  clusters   {report['clusters']['number']:,}: {spread}")
    if report["near"] and (spread_of := report["near"]["removed_by_similarity_to_the_kept_document"]):
        spread = ", ".join(f"{number:,} at {place}" for place, number in spread_of.items() if number)
        typer.echo(f"  similar    {spread}" if spread else "  similar    none")
    pairs = report["source_pairs"]
    for pair in pairs[:_SHOWN_PAIRS]:
        typer.echo(
            f"  {pair['removed_from']}: {pair['exact']:,} exact, {pair['near']:,} near duplicates of {pair['kept_in']}"
        )
    if len(pairs) > _SHOWN_PAIRS:
        others = sum(pair["exact"] + pair["near"] for pair in pairs[_SHOWN_PAIRS:])
        typer.echo(
            f"  {len(pairs) - _SHOWN_PAIRS:,} more pairs of files with {others:,} duplicates: {output}/report.json"
        )
    if rejected := manifest["rejected"]["records"]:
        reasons = ", ".join(f"{number:,} {reason}" for reason, number in manifest["rejected"]["reasons"].items())
        typer.echo(f"  {rejected:,} records rejected: {reasons}; see {output}/rejected.jsonl")
    typer.echo(f"  what went is listed in {output}/removed.jsonl.zst")
    typer.echo(f"  {speed(sizes['in'], seconds)}, {seconds:.1f} s", err=True)
