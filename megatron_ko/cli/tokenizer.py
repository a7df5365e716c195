"""`megatron-ko tokenizer`: trains, extends, checks and compares tokenizers."""

import json
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from megatron_ko.cli import tokenizer_chat
from megatron_ko.cli.data_options import AsJson, Encoding, EncodingOption, MoreInputs

if TYPE_CHECKING:
    from megatron_ko.data.tokenizer.corpus import Corpus
    from megatron_ko.data.tokenizer.extra import ExtraTokens

_SHOWN_GROUPS = 20
app = typer.Typer(no_args_is_help=True, help="Train, extend, check and compare tokenizers.")

Inputs = Annotated[
    list[Path],
    typer.Option("--input", metavar="FILE...", help="Text: files as `data` reads them, folders, patterns."),
]
JsonKey = Annotated[str, typer.Option(metavar="KEY", help="Text field of jsonl and parquet.")]
BalanceBy = Annotated[
    str, typer.Option(metavar="FIELD", help="What --weights and --temperature balance: source (a file), or a field.")
]
Weights = Annotated[
    list[str] | None,
    typer.Option("--weights", metavar="NAME=SHARE", help="Share of each file or field value; repeatable."),
]
Temperature = Annotated[
    float, typer.Option(min=1.0, help="Without --weights: shares in proportion to bytes ** (1 / temperature).")
]


UserDefined = Annotated[
    str | None,
    typer.Option(metavar="FILE|TOKEN,...", help="Texts that are always one id each: a file, one a line, or a list."),
]
Reserved = Annotated[int, typer.Option(min=0, help="Special tokens <|reserved_0|> ... for later use.")]


class Model(StrEnum):
    """The algorithms."""

    unigram = "unigram"
    bpe = "bpe"
    byte_bpe = "byte-bpe"


@app.callback()
def _group() -> None:
    """Train, extend, check and compare tokenizers."""


app.command()(tokenizer_chat.chat)


@app.command()
def train(
    files: Inputs,
    vocab_size: Annotated[int, typer.Option(min=1, help="Number of ids, special tokens included.")],
    output: Annotated[Path, typer.Option(metavar="DIR", help="New folder.")],
    more: MoreInputs = None,
    model: Annotated[Model, typer.Option(help="SentencePiece unigram or bpe, or byte-level bpe.")] = Model.unigram,
    json_key: JsonKey = "text",
    encoding: EncodingOption = Encoding.utf_8,
    character_coverage: Annotated[
        float, typer.Option(min=0.5, max=1.0, help="Share of characters with their own token; others become bytes.")
    ] = 0.9995,
    max_megabytes: Annotated[int, typer.Option(min=1, help="Train on a random sample of at most this size.")] = 200,
    balance_by: BalanceBy = "source",
    weights: Weights = None,
    temperature: Temperature = 1.0,
    user_defined_tokens: UserDefined = None,
    reserved_tokens: Reserved = 0,
    tensor: Annotated[int, typer.Option(min=1, help="Print the embedding's rows for this tensor parallelism.")] = 1,
    as_json: AsJson = False,
) -> None:
    """Train a tokenizer, check that it is lossless, and write a folder that transformers can load.

    Example: megatron-ko tokenizer train --input corpus.jsonl --model unigram --vocab-size 16000 --output tokenizer
    """
    from dataclasses import asdict

    from megatron_ko.data.text.inputs import expand_inputs
    from megatron_ko.data.tokenizer import TokenizerOptions, train_tokenizer
    from megatron_ko.data.tokenizer.extra import ExtraTokens, parse_tokens

    options = TokenizerOptions(
        model=model.value,
        vocab_size=vocab_size,
        key=json_key,
        character_coverage=character_coverage,
        max_bytes=max_megabytes * 1_000_000,
        balance_by=balance_by,
        weights=named_weights(weights),
        temperature=temperature,
        encoding=encoding,
        extra=ExtraTokens(parse_tokens(user_defined_tokens), reserved_tokens),
    )
    inputs = expand_inputs((*files, *(more or [])))
    report = train_tokenizer(inputs, output, options, lambda line: typer.echo(line, err=True))
    if as_json:
        rows = _padded(report.vocab_size, tensor)
        typer.echo(json.dumps(asdict(report) | {"padded_vocab_size": rows}, ensure_ascii=False))
        return
    typer.echo(
        f"{report.output}: {report.model}, {report.vocab_size:,} ids ({_padded(report.vocab_size, tensor):,} rows with "
        f"padding at tensor {tensor}), fingerprint {report.fingerprint[:16]}"
    )
    groups = report.groups if len(report.groups) > 1 else ()
    for group in groups[:_SHOWN_GROUPS]:
        typer.echo(
            f"  {group.name}: {group.trained_documents:,} of {group.documents:,} documents, "
            f"{group.trained_bytes / 1e6:.1f} MB, {group.trained_bytes / report.trained_bytes:.1%}"
        )
    if len(groups) > _SHOWN_GROUPS:
        rest = sum(group.trained_bytes for group in groups[_SHOWN_GROUPS:])
        typer.echo(f"  {len(groups) - _SHOWN_GROUPS:,} more, {rest / 1e6:.1f} MB; --json lists all")
    _say_extra(options.extra)
    typer.echo(
        f"  trained on   {report.trained_documents:,} of {report.documents:,} documents, "
        f"{report.trained_bytes / 1e6:.1f} MB ({report.trained_share:.2%} of it reached the trainer)\n"
        f"  rejected     {report.rejected:,} records\n"
        f"  round trip   {report.gate_texts:,} texts, exact\n"
        f"  fertility    {report.bytes_per_token:.2f} bytes a token, {report.tokens_per_eojeol:.2f} tokens an eojeol, "
        f"{report.byte_fallback_share:.2%} of tokens are bytes"
    )


@app.command()
def extend(
    files: Inputs,
    base: Annotated[Path, typer.Option(metavar="DIR", help="Hugging Face folder with a tokenizer.json: BPE.")],
    vocab_size: Annotated[int, typer.Option(min=1, help="Number of new ids.")],
    output: Annotated[Path, typer.Option(metavar="DIR", help="New folder.")],
    more: MoreInputs = None,
    json_key: JsonKey = "text",
    encoding: EncodingOption = Encoding.utf_8,
    max_megabytes: Annotated[int, typer.Option(min=1, help="Learn from a random sample of at most this size.")] = 50,
    balance_by: BalanceBy = "source",
    weights: Weights = None,
    temperature: Temperature = 1.0,
    user_defined_tokens: UserDefined = None,
    reserved_tokens: Reserved = 0,
    tensor: Annotated[int, typer.Option(min=1, help="Print the embedding's rows for this tensor parallelism.")] = 1,
    as_json: AsJson = False,
) -> None:
    """Add Korean pieces to a tokenizer. Existing ids do not change, and text without Hangul keeps its ids.

    DIR/new_ids.jsonl lists the old ids that each new id replaces; initialise its embedding row with their mean.

    Example: megatron-ko tokenizer extend --base SmolLM2-135M --input corpus.jsonl --vocab-size 8981 --output bori
    """
    from dataclasses import asdict

    from megatron_ko.data.text.inputs import expand_inputs
    from megatron_ko.data.tokenizer.corpus import CorpusSampling
    from megatron_ko.data.tokenizer.extend import ExtendOptions, extend_tokenizer
    from megatron_ko.data.tokenizer.extra import ExtraTokens, parse_tokens

    sampling = CorpusSampling(
        key=json_key,
        max_bytes=max_megabytes * 1_000_000,
        balance_by=balance_by,
        weights=named_weights(weights),
        temperature=temperature,
        encoding=encoding,
    )
    extra = ExtraTokens(parse_tokens(user_defined_tokens), reserved_tokens)
    options = ExtendOptions(new_ids=vocab_size, sampling=sampling, extra=extra)
    inputs = expand_inputs((*files, *(more or [])))
    report = extend_tokenizer(base, inputs, output, options, lambda line: typer.echo(line, err=True))
    rows = _padded(report.vocab_size, tensor)
    if as_json:
        typer.echo(json.dumps(asdict(report) | {"padded_vocab_size": rows}, ensure_ascii=False))
        return
    before, after = report.tokens_before, report.tokens_after
    typer.echo(
        f"{report.output}: {report.base_vocab_size:,} + {report.new_ids:,} = {report.vocab_size:,} ids ({rows:,} rows "
        f"with padding at tensor {tensor}), fingerprint {report.fingerprint[:16]}\n"
        f"  learnt from  {report.trained_documents:,} of {report.documents:,} documents, "
        f"{report.trained_bytes / 1e6:.1f} MB\n"
        f"  proved       every old id, and {report.proved_texts:,} texts: new ids, spelt in old ones, are the old ids\n"
        f"  fertility    {report.eojeols and before / report.eojeols:.2f} tokens an eojeol before, "
        f"{report.eojeols and after / report.eojeols:.2f} after; {report.bytes / before:.2f} bytes a token before, "
        f"{report.bytes / after:.2f} after"
    )
    _say_extra(extra)
    if report.missing_bytes:
        from megatron_ko.data.tokenizer.unencodable import hexadecimal

        typer.echo(
            f"  cannot write {len(report.missing_bytes)} bytes, for which the base has no token: "
            f"{hexadecimal(report.missing_bytes)}"
        )


@app.command()
def check(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Any Hugging Face folder with a tokenizer.json.")],
    files: Annotated[
        list[Path] | None, typer.Option("--input", metavar="FILE...", help="More documents that must round-trip.")
    ] = None,
    more: MoreInputs = None,
    json_key: JsonKey = "text",
    encoding: EncodingOption = Encoding.utf_8,
    as_json: AsJson = False,
) -> None:
    """Check that a tokenizer is lossless, normalises nothing, has single special tokens, and matches transformers.

    Exit code 2 if anything fails; a check that cannot run counts as failed.

    Example: megatron-ko tokenizer check tokenizer --input corpus.jsonl
    """
    from dataclasses import asdict

    from megatron_ko.data.tokenizer.check import check_folder

    inputs = [*(files or []), *(more or [])]
    results = check_folder(folder, [*_corpus(inputs, json_key, 20, encoding).texts()] if inputs else ())
    ok = all(result.ok for result in results)
    if as_json:
        checks = [asdict(result) | {"ok": result.ok} for result in results]
        typer.echo(json.dumps({"ok": ok, "folder": str(folder), "checks": checks}, ensure_ascii=False))
    else:
        for result in results:
            passed = f"{result.tried - result.failed:>6,} of {result.tried:,}"
            typer.echo(f"{'ok' if result.ok else 'FAILED':<8}{result.name:<48}{passed}")
            if not result.ok:
                typer.echo(f"{'':<8}{result.example}")
        failed = sum(not result.ok for result in results)
        typer.echo(f"{folder}: " + ("every check passed" if ok else f"{failed} of {len(results)} checks FAILED"))
    if not ok:
        raise typer.Exit(2)


@app.command()
def compare(
    folders: Annotated[list[Path], typer.Argument(metavar="DIR...", help="Tokenizers.")],
    files: Inputs,
    json_key: JsonKey = "text",
    encoding: EncodingOption = Encoding.utf_8,
    max_megabytes: Annotated[int, typer.Option(min=1, help="Compare on a random sample of at most this size.")] = 20,
    plot: Annotated[Path | None, typer.Option(metavar="PNG", help="Also plot the comparison.")] = None,
    as_json: AsJson = False,
) -> None:
    """Compare fertility, coverage, byte and unknown tokens of several tokenizers, on each file and on all.

    Example: megatron-ko tokenizer compare tok-unigram tok-bpe --input corpus.jsonl --plot fertility.png
    """
    from dataclasses import asdict

    from megatron_ko.data.figures import check_picture
    from megatron_ko.data.tokenizer.compare import compare_tokenizers, comparison_table

    if plot is not None:
        check_picture(plot)
    # With `--input A B`, B becomes a positional argument.
    inputs = [*files, *(path for path in folders if path.is_file())]
    tokenizers = [path for path in folders if not path.is_file()]
    texts = _corpus(inputs, json_key, max_megabytes, encoding).texts_by_group()
    comparison = compare_tokenizers(tokenizers, texts)
    if plot is not None:
        from megatron_ko.data.tokenizer.plots import comparison_png

        comparison_png(comparison, plot)
    if as_json:
        typer.echo(json.dumps(asdict(comparison), ensure_ascii=False))
        return
    for line in comparison_table(comparison):
        typer.echo(line)
    typer.echo(
        f"\n{comparison.documents:,} documents, {comparison.characters:,} characters, {comparison.eojeols:,} eojeols, "
        f"{comparison.bytes / 1e6:.1f} MB" + (f"; drawn in {plot}" if plot else "")
    )


def _corpus(files: list[Path], json_key: str, megabytes: int, encoding: Encoding) -> "Corpus":
    from megatron_ko.data.text.blocks import check_inputs
    from megatron_ko.data.text.inputs import expand_inputs
    from megatron_ko.data.tokenizer.corpus import Corpus, CorpusSampling

    inputs = expand_inputs(files)
    check_inputs(inputs)
    sampling = CorpusSampling(key=json_key, max_bytes=megabytes * 1_000_000, encoding=encoding)
    return Corpus(inputs, sampling)


def named_weights(given: list[str] | None) -> dict[str, float]:
    """NAME=SHARE options as a mapping."""
    weights = {}
    for word in given or ():
        name, sign, value = word.rpartition("=")
        try:
            weights[name] = float(value)
        except ValueError:
            sign = ""
        if not sign or not name:
            raise typer.BadParameter(f"--weights {word}: expected NAME=SHARE, for example --weights ko.jsonl=0.7")
    return weights


def _say_extra(extra: "ExtraTokens") -> None:
    if len(extra):
        typer.echo(f"  declared     {len(extra.user_defined)} user-defined tokens, {extra.reserved} reserved")


def _padded(vocab_size: int, tensor: int) -> int:
    from math import lcm

    from megatron_ko.config import ModelConfig

    multiple = lcm(ModelConfig.model_fields["vocab_multiple"].default, tensor)
    return -(-vocab_size // multiple) * multiple
