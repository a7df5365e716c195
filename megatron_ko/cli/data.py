"""`megatron-ko data`: text to indexed tokens, and a look at what they hold."""

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, help="Text to indexed tokens, and a look at what they hold.")

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Prefix = Annotated[Path, typer.Argument(metavar="PREFIX", help="Path of the .bin/.idx pair without its suffix.")]

Inputs = Annotated[
    list[Path], typer.Option("--input", metavar="FILE...", help="Text: .txt .jsonl .parquet, also .gz .zst.")
]
MoreInputs = Annotated[list[Path] | None, typer.Argument(metavar="[FILE]...", help="More --input files.")]


class TextUnit(StrEnum):
    """What a document of a .txt file is."""

    line = "line"
    file = "file"


@app.callback()
def _group() -> None:
    """Text to indexed tokens, and a look at what they hold."""


@app.command()
def preprocess(
    files: Inputs,
    tokenizer: Annotated[Path, typer.Option(metavar="DIR", help="Folder of the tokenizer.")],
    output: Annotated[Path, typer.Option(metavar="PREFIX", help="Writes PREFIX.bin, .idx and .manifest.json.")],
    more: MoreInputs = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes; default: one a core.")] = os.cpu_count() or 1,
    json_key: Annotated[str, typer.Option(metavar="KEY", help="Text field of jsonl and parquet.")] = "text",
    append_eod: Annotated[bool, typer.Option(help="End every document with the end-of-document token.")] = True,
    text_unit: Annotated[TextUnit, typer.Option(help="A document of a .txt file.")] = TextUnit.line,
    as_json: AsJson = False,
) -> None:
    """Encode text into Megatron's indexed format. Order and output do not depend on the number of workers.

    Records that are no documents are counted and written to PREFIX.rejected.jsonl with the reason.

    Example: megatron-ko data preprocess --input corpus.jsonl --tokenizer tokenizer --output data/corpus --workers 8
    """
    import time

    from megatron_ko.data.preprocess import PreprocessOptions
    from megatron_ko.data.preprocess import preprocess as run

    inputs = (*files, *(more or []))
    options = PreprocessOptions(inputs, tokenizer, output, workers, json_key, append_eod, text_unit.value)
    start = time.monotonic()
    with _progress_bar(inputs) as progress:
        manifest = run(options, progress)
    seconds = time.monotonic() - start
    if as_json:
        typer.echo(json.dumps({**json.loads(manifest.to_json()), "seconds": round(seconds, 3)}, ensure_ascii=False))
        return
    typer.echo(
        f"{output}: {manifest.documents:,} documents, {manifest.tokens:,} tokens ({manifest.dtype}), "
        f"{manifest.bytes / manifest.tokens:.2f} bytes a token\n"
        f"  {manifest.documents / seconds:,.0f} documents/s, {manifest.bytes / seconds / 1e6:.1f} MB/s, {seconds:.1f} s"
    )
    if manifest.rejected:
        reasons = ", ".join(f"{number:,} {reason}" for reason, number in manifest.rejected_reasons.items())
        typer.echo(f"  {manifest.rejected:,} records rejected: {reasons}; see {output}.rejected.jsonl")


@app.command()
def inspect(
    prefix: Prefix,
    tokenizer: Annotated[Path | None, typer.Option(metavar="DIR", help="Decode samples with this tokenizer.")] = None,
    samples: Annotated[int, typer.Option(min=0, help="Documents to show, spread over the file.")] = 3,
    as_json: AsJson = False,
) -> None:
    """Show the manifest, totals and some documents; with --tokenizer as text.

    Example: megatron-ko data inspect data/corpus --tokenizer tokenizer --json
    """
    from megatron_ko.data.inspect import inspect_shard

    view = inspect_shard(prefix, tokenizer, samples)
    if as_json:
        typer.echo(json.dumps(view, ensure_ascii=False))
        return
    manifest = view["manifest"]
    typer.echo(
        f"{prefix}: {manifest['documents']:,} documents, {manifest['tokens']:,} tokens ({manifest['dtype']}), "
        f"{manifest['bytes'] / 1e6:.1f} MB of text, {manifest['rejected']:,} rejected\n"
        f"  tokenizer  {manifest['tokenizer_kind']}, {manifest['vocab_size']:,} ids, "
        f"fingerprint {manifest['tokenizer_fingerprint'][:16]}\n"
        f"  lengths    {view['lengths']}"
    )
    for sample in view["samples"]:
        shown = sample["text"] if sample["text"] is not None else sample["ids"]
        typer.echo(f"  document {sample['document']} ({sample['tokens']} tokens): {str(shown)[:300]!r}")


@app.command()
def verify(prefix: Prefix, as_json: AsJson = False) -> None:
    """Check every byte: hashes, sizes, index, ids below the vocabulary. Exit code 2 if anything differs.

    Example: megatron-ko data verify data/corpus
    """
    from megatron_ko.data.manifest import verify_shard

    manifest = verify_shard(prefix)
    if as_json:
        result = {"ok": True, "prefix": str(prefix), "documents": manifest.documents, "tokens": manifest.tokens}
        typer.echo(json.dumps(result))
        return
    typer.echo(f"{prefix}: ok, {manifest.documents:,} documents, {manifest.tokens:,} tokens")


@contextmanager
def _progress_bar(inputs: tuple[Path, ...]) -> Iterator[Callable[[int], None]]:
    """A bar over the bytes of the inputs, on a terminal; silence elsewhere."""
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

    total = sum(path.stat().st_size for path in inputs if path.is_file())
    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("encoding", total=total)
        yield lambda read: bar.update(task, completed=read)
