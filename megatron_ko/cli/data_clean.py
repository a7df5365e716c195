"""`megatron-ko data clean`: cleans text with a configured pipeline, and reports everything it dropped or changed."""

import json
import sys
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
    OutputFormat,
    OutputFormatOption,
    Restart,
    TextUnit,
    TextUnitOption,
    Workers,
)
from megatron_ko.cli.data_progress import bar_over_bytes, say_how_to_resume, speed

if TYPE_CHECKING:
    from megatron_ko.data.clean.calibration import Calibration
    from megatron_ko.data.clean.clean import CleanOptions
    from megatron_ko.data.clean.report import CleanReport


def clean(
    files: Inputs,
    output: Annotated[Path, typer.Option(metavar="DIR", help="New folder for shards, manifest and report.")],
    config: Annotated[Path, typer.Option(metavar="YAML", help="The pipeline; see configs/clean.")],
    more: MoreInputs = None,
    workers: Workers = CORES,
    json_key: Annotated[str, typer.Option(metavar="KEY", help="Field of the text.")] = "text",
    text_unit: TextUnitOption = TextUnit.line,
    format: InputFormatOption = None,
    encoding: EncodingOption = Encoding.utf_8,
    output_format: OutputFormatOption = OutputFormat.jsonl_zst,
    shard_size: Annotated[int, typer.Option(metavar="MIB", min=1, help="A shard is closed at this size.")] = 512,
    rank: Annotated[int, typer.Option(min=0, help="Number of this process among --size.")] = 0,
    size: Annotated[int, typer.Option(min=1, help="Processes that share the work; the last one writes.")] = 1,
    sample: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Only measure N documents to find thresholds; drop nothing.")
    ] = None,
    restart: Restart = False,
    as_json: AsJson = False,
) -> None:
    """Repair, trim, filter and mask text. The output does not depend on the number of workers, ranks or interruptions.

    Finished work is kept in DIR.parts until the end: if you run the same command again after a kill, it continues.
    Every dropped document is counted by stage and reason, with samples; documents in = out + dropped.

    Example: megatron-ko data clean --input dump.jsonl.zst --output clean --config configs/clean/korean-web.yaml
    """
    from megatron_ko.data.clean.clean import CleanOptions, parts_folder
    from megatron_ko.data.clean.config import load_clean_config
    from megatron_ko.data.jobs.job import remove_job
    from megatron_ko.data.text.inputs import expand_inputs

    if rank >= size:
        raise typer.BadParameter(f"--rank {rank} must be below --size {size}")
    options = CleanOptions(
        inputs=expand_inputs((*files, *(more or [])), format),
        output=output,
        config=load_clean_config(config),
        workers=workers,
        key=json_key,
        text_unit=text_unit,
        input_format=format,
        encoding=encoding,
        format=output_format,
        shard_bytes=shard_size << 20,
        rank=rank,
        size=size,
    )
    if sample is not None:
        _measure(options, sample, as_json)
        return
    if restart:
        remove_job(parts_folder(output))
    _clean(options, as_json)


def _clean(options: "CleanOptions", as_json: bool) -> None:
    import time

    from megatron_ko.data.clean.clean import clean as run
    from megatron_ko.data.clean.clean import parts_folder

    start = time.monotonic()
    with (
        say_how_to_resume(parts_folder(options.output)),
        bar_over_bytes("cleaning", options.inputs, options.size) as progress,
    ):
        report = run(options, progress)
    seconds = time.monotonic() - start
    if report is None:
        message = f"rank {options.rank} of {options.size} is finished; the last one to end writes {options.output}"
        typer.echo(json.dumps({"finished": options.rank, "of": options.size}) if as_json else message)
    elif as_json:
        result = {**report, "output": str(options.output), "seconds": round(seconds, 3)}
        typer.echo(json.dumps(result, ensure_ascii=False))
    else:
        _print_report(report)
        pace = f"{report['in']['documents'] / seconds:,.0f} documents/s, {speed(report['in']['bytes'], seconds)}"
        typer.echo(f"{options.output}: samples of every reason in samples/")
        typer.echo(f"  {pace}, {seconds:.1f} s", err=True)


def _print_report(report: "CleanReport") -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("stage")
    for heading in ("dropped", "of all", "changed", "left"):
        table.add_column(heading, justify="right")
    table.add_column("reasons", overflow="fold")
    whole = max(1, report["in"]["documents"])
    table.add_row("input", "", "", "", f"{report['in']['documents']:,}", "", end_section=True)
    for stage in report["stages"]:
        dropped = sum(amount["documents"] for amount in stage["dropped"].values())
        changed = stage["changed_documents"]
        reasons = {reason: amount["documents"] for reason, amount in stage["dropped"].items()}
        reasons |= {f"{reason}*": change["documents"] for reason, change in stage["changed"].items()}
        shown = sorted(reasons.items(), key=lambda item: -item[1])
        table.add_row(
            stage["stage"],
            f"{dropped:,}" if dropped else "",
            f"{dropped / whole:.1%}" if dropped else "",
            f"{changed:,}" if changed else "",
            f"{stage['out']['documents']:,}",
            ", ".join(f"{reason} {number:,}" for reason, number in shown),
        )
    console = Console(width=None if sys.stdout.isatty() else 120)
    console.print(table)
    kept = report["kept"]
    console.print(
        f"kept {kept['documents']:.1%} of documents, {kept['characters']:.1%} of characters; * changed, not dropped",
        highlight=False,
    )
    for name, counts in report["notes"].items():
        console.print(
            f"{name}: " + ", ".join(f"{value} {number:,}" for value, number in counts.items()), highlight=False
        )
    if report["rejected"]:
        rejected = ", ".join(f"{number:,} {reason}" for reason, number in report["rejected"].items())
        console.print(f"records rejected: {rejected}; see rejected.jsonl", highlight=False)


def _measure(options: "CleanOptions", number: int, as_json: bool) -> None:
    from dataclasses import asdict

    from megatron_ko.data.clean.calibration import calibrate
    from megatron_ko.data.clean.plots import histograms_png
    from megatron_ko.storage.files import new_folder

    found = calibrate(options.reading, options.config, number)
    with new_folder(options.output) as folder:
        (folder / "calibration.json").write_text(
            json.dumps(asdict(found), ensure_ascii=False, indent=2), encoding="utf-8"
        )
        histograms_png(found.measures, folder / "histograms.png")
    if as_json:
        typer.echo(json.dumps({**asdict(found), "output": str(options.output)}, ensure_ascii=False))
        return
    _print_measures(found)
    typer.echo(f"{options.output}/histograms.png: {found.documents:,} documents measured, nothing was cleaned")


def _print_measures(found: "Calibration") -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, header_style="bold", pad_edge=False)
    for heading in ("stage", "reason"):
        table.add_column(heading)
    for heading in ("low", "high", "outside", "1%", "5%", "25%", "50%", "75%", "95%", "99%"):
        table.add_column(heading, justify="right")
    for measure in found.measures:
        limits = ("" if limit is None else f"{limit:g}" for limit in (measure.low, measure.high))
        values = (f"{value:.4g}" for value in measure.quantiles.values())
        table.add_row(measure.stage, measure.reason, *limits, f"{measure.outside:.1%}", *values)
    Console(width=None if sys.stdout.isatty() else 140).print(table)
