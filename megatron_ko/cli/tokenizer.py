"""`megatron-ko tokenizer`: train tokenizers that give back exactly what they were given."""

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, help="Train tokenizers that give back exactly what they were given.")

Inputs = Annotated[
    list[Path], typer.Option("--input", metavar="FILE...", help="Text: .txt .jsonl .parquet, also .gz .zst.")
]
MoreInputs = Annotated[list[Path] | None, typer.Argument(metavar="[FILE]...", help="More --input files.")]


class Model(StrEnum):
    """The algorithms."""

    unigram = "unigram"
    bpe = "bpe"
    byte_bpe = "byte-bpe"


@app.callback()
def _group() -> None:
    """Train tokenizers that give back exactly what they were given."""


@app.command()
def train(
    files: Inputs,
    vocab_size: Annotated[int, typer.Option(min=1, help="Number of ids, special tokens included.")],
    output: Annotated[Path, typer.Option(metavar="DIR", help="New folder.")],
    more: MoreInputs = None,
    model: Annotated[Model, typer.Option(help="SentencePiece unigram or bpe, or byte-level bpe.")] = Model.unigram,
    json_key: Annotated[str, typer.Option(metavar="KEY", help="Text field of jsonl and parquet.")] = "text",
    character_coverage: Annotated[
        float, typer.Option(min=0.5, max=1.0, help="Share of characters with a token; others are spelt in bytes.")
    ] = 0.9995,
    max_megabytes: Annotated[int, typer.Option(min=1, help="Train on a random sample of at most this size.")] = 200,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Train a tokenizer, check that every text comes back exactly, and write a folder that transformers loads.

    Example: megatron-ko tokenizer train --input corpus.jsonl --model unigram --vocab-size 16000 --output tokenizer
    """
    from dataclasses import asdict

    from megatron_ko.data.tokenizer import TokenizerOptions, train_tokenizer

    options = TokenizerOptions(
        model=model.value,
        vocab_size=vocab_size,
        key=json_key,
        character_coverage=character_coverage,
        max_bytes=max_megabytes * 1_000_000,
    )
    report = train_tokenizer([*files, *(more or [])], output, options, lambda line: typer.echo(line, err=True))
    if as_json:
        typer.echo(json.dumps(asdict(report), ensure_ascii=False))
        return
    typer.echo(
        f"{report.output}: {report.model}, {report.vocab_size:,} ids, fingerprint {report.fingerprint[:16]}\n"
        f"  trained on   {report.trained_documents:,} of {report.documents:,} documents, "
        f"{report.trained_bytes / 1e6:.1f} MB ({report.trained_share:.2%} of it reached the trainer)\n"
        f"  rejected     {report.rejected:,} records\n"
        f"  round trip   {report.gate_texts:,} texts, exact\n"
        f"  fertility    {report.bytes_per_token:.2f} bytes a token, {report.tokens_per_eojeol:.2f} tokens an eojeol, "
        f"{report.byte_fallback_share:.2%} of tokens are bytes"
    )
