"""`megatron-ko data stats` and `data blend`: statistics of sources, and how much of each a run reads."""

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from megatron_ko.cli.data_options import AsJson

Prefixes = Annotated[
    list[Path],
    typer.Argument(metavar="PREFIX...", help="Sources: a .bin/.idx pair without suffix, shards, or a folder, each."),
]


class Method(StrEnum):
    """How weights are computed."""

    proportional = "proportional"
    temperature = "temperature"
    explicit = "explicit"
    unimax = "unimax"


def stats(
    prefixes: Prefixes,
    plot: Annotated[
        Path | None, typer.Option(metavar="PNG", help="Draw the lengths of the documents of every source.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show documents, tokens, bytes and document lengths of every source. Sources with the same tokens are refused.

    Example: megatron-ko data stats data/web data/books --plot lengths.png
    """
    from dataclasses import asdict

    from megatron_ko.data.figures import check_picture
    from megatron_ko.data.tokens.blend import read_sources
    from megatron_ko.data.tokens.stats import lengths_png, source_stats, stats_table

    if plot is not None:
        check_picture(plot)
    sources = read_sources(prefixes)
    found = source_stats(sources)
    if plot is not None:
        lengths_png(sources, plot)
    for line in [json.dumps(asdict(found), ensure_ascii=False)] if as_json else stats_table(found):
        typer.echo(line)


def blend(
    prefixes: Prefixes,
    tokens: Annotated[int, typer.Option(min=1, help="Tokens that the run reads.")],
    output: Annotated[Path, typer.Option(metavar="YAML", help="New file, for data: {from: YAML} of a run.")],
    method: Annotated[Method, typer.Option(help="How weights are computed.")] = Method.proportional,
    temperature: Annotated[float, typer.Option(min=1.0, help="For that method: tokens ** (1 / temperature).")] = 2.0,
    weights: Annotated[
        list[str] | None, typer.Option("--weights", metavar="NAME=SHARE", help="For explicit weights; repeatable.")
    ] = None,
    max_epochs: Annotated[float, typer.Option(min=0.0, help="Refuse to read a source more often than this.")] = 4.0,
    train_share: Annotated[
        float, typer.Option(min=0.01, max=1.0, help="Share of each source used for training (data.split).")
    ] = 0.98,
    as_json: AsJson = False,
) -> None:
    """Compute the weights of sources for a token budget, and how often each source is then read.

    Example: megatron-ko data blend data/web data/books --tokens 1000000000 --method unimax --output blend.yaml
    """
    from dataclasses import asdict

    from megatron_ko.cli.tokenizer import named_weights
    from megatron_ko.data.tokens.blend import BlendOptions, read_sources, write_blend
    from megatron_ko.data.tokens.blend import blend as find_shares

    given = named_weights(weights)
    chosen = Method.explicit if given and method is Method.proportional else method
    if given and chosen is not Method.explicit:
        raise typer.BadParameter(f"--weights are for --method explicit, not {method.value}")
    options = BlendOptions(tokens, chosen.value, temperature, given, max_epochs, train_share)
    sources = read_sources(prefixes)
    shares = find_shares({source.name: int(source.tokens * train_share) for source in sources}, options)
    write_blend(output, sources, shares, options)
    if as_json:
        result = {"output": str(output), "method": chosen.value, "shares": [asdict(share) for share in shares]}
        typer.echo(json.dumps(result, ensure_ascii=False))
        return
    typer.echo("| source | tokens for training | weight | tokens read | epochs |\n|---|---|---|---|---|")
    for share in shares:
        typer.echo(
            f"| {share.name} | {share.available:,} | {share.weight:.4f} | {share.tokens:,.0f} | {share.epochs:.3f} |"
        )
    typer.echo(f"\n{output}: {chosen.value}, {tokens:,} tokens; in a run file: data: {{from: {output}}}")
