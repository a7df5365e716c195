"""`megatron-ko data merge`: writes the files of a `data preprocess` with several ranks."""

from pathlib import Path
from typing import Annotated

import typer

from megatron_ko.cli.data_options import CORES, AsJson, Workers
from megatron_ko.cli.data_preprocess import NewPrefix, report_outputs
from megatron_ko.cli.data_progress import say_how_to_resume


def merge(
    output: NewPrefix,
    tokenizer: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Decode samples of the output with this tokenizer and compare.")
    ] = None,
    workers: Workers = CORES,
    as_json: AsJson = False,
) -> None:
    """Write the files of a `data preprocess` with several ranks, once all ranks have finished.

    Example: megatron-ko data merge --output data/corpus
    """
    import time

    from megatron_ko.data.tokens.merge import job_folder
    from megatron_ko.data.tokens.merge import merge as run

    start = time.monotonic()
    with say_how_to_resume(job_folder(output)):
        written = run(output, workers, tokenizer)
    report_outputs(written, time.monotonic() - start, as_json)
