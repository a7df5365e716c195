"""`megatron-ko data`: turns text into indexed tokens, and inspects them."""

import json
from pathlib import Path
from typing import Annotated

import typer

from megatron_ko.cli import (
    data_blend,
    data_chat,
    data_clean,
    data_decontaminate,
    data_dedup,
    data_merge,
    data_preprocess,
)
from megatron_ko.cli.data_options import AsJson

app = typer.Typer(no_args_is_help=True, help="Turn text into indexed tokens, and inspect them.")

_SOURCES = 10
_BAR = 40

Prefix = Annotated[
    Path,
    typer.Argument(metavar="PREFIX", help="Path of the .bin/.idx pair without its suffix, of shards, or a folder."),
]


@app.callback()
def _group() -> None:
    """Turn text into indexed tokens, and inspect them."""


app.command()(data_preprocess.preprocess)
app.command()(data_merge.merge)
app.command()(data_clean.clean)
app.command()(data_dedup.dedup)
app.command()(data_decontaminate.decontaminate)
app.command()(data_chat.chat)
app.command()(data_chat.preference)
app.command()(data_chat.preview)
app.command()(data_blend.stats)
app.command()(data_blend.blend)


@app.command()
def inspect(
    prefix: Prefix,
    tokenizer: Annotated[Path | None, typer.Option(metavar="DIR", help="Decode samples with this tokenizer.")] = None,
    samples: Annotated[int, typer.Option(min=0, help="Documents to show, spread over the file.")] = 3,
    as_json: AsJson = False,
) -> None:
    """Show totals, sources, the distribution of document lengths and some documents (as text with --tokenizer).

    Example: megatron-ko data inspect data/corpus --tokenizer tokenizer --json
    """
    from dataclasses import asdict

    from megatron_ko.data.tokens.inspect import inspect_data

    view = inspect_data(prefix, tokenizer, samples)
    if as_json:
        typer.echo(json.dumps(asdict(view), ensure_ascii=False))
        return
    totals, shards = view.totals, view.shards
    manifest = shards[0].manifest
    typer.echo(
        f"{prefix}: {totals.documents:,} documents, {totals.tokens:,} tokens ({manifest.dtype}), "
        f"{totals.bytes / 1e6:.1f} MB of text, {totals.rejected:,} rejected"
        f"{f', {len(shards)} shards' if len(shards) > 1 else ''}\n"
        f"  tokenizer  {manifest.tokenizer_kind}, {manifest.vocab_size:,} ids, "
        f"fingerprint {manifest.tokenizer_fingerprint[:16]}"
    )
    for path, documents in list(view.sources.items())[:_SOURCES]:
        typer.echo(f"  source     {path}: {documents:,} documents")
    if len(view.sources) > _SOURCES:
        typer.echo(f"  source     and {len(view.sources) - _SOURCES} more")
    typer.echo(f"  lengths    {', '.join(f'{name} {value:,.0f}' for name, value in view.lengths.items())} tokens")
    largest = max(count for *_, count in view.histogram)
    for least, most, count in view.histogram:
        typer.echo(f"  {f'{least:,}-{most:,}':>19}  {'#' * -(-_BAR * count // largest)} {count:,}")
    for shard in shards:
        for sample in shard.samples:
            shown = sample.text if sample.text is not None else sample.ids
            where = f"{Path(shard.prefix).name} " if len(shards) > 1 else ""
            typer.echo(f"  {where}document {sample.document} ({sample.tokens} tokens): {str(shown)[:300]!r}")


@app.command()
def verify(prefix: Prefix, as_json: AsJson = False) -> None:
    """Check every byte: hashes, sizes, index, token ids in range. Exit code 2 if anything differs.

    Example: megatron-ko data verify data/corpus
    """
    from megatron_ko.data.tokens.inspect import verify_data

    checked = verify_data(prefix)
    documents = sum(manifest.documents for _, manifest in checked)
    tokens = sum(manifest.tokens for _, manifest in checked)
    if as_json:
        shards = [str(shard) for shard, _ in checked]
        result = {"ok": True, "prefix": str(prefix), "documents": documents, "tokens": tokens, "shards": shards}
        typer.echo(json.dumps(result))
        return
    for shard, manifest in checked if len(checked) > 1 else ():
        typer.echo(f"{shard}: ok, {manifest.documents:,} documents, {manifest.tokens:,} tokens")
    typer.echo(f"{prefix}: ok, {documents:,} documents, {tokens:,} tokens")
