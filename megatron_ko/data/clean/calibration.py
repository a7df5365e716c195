"""A dry run over a sample: how every measured quantity is distributed, and what its limits would drop."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np

from megatron_ko.data.clean.config import CleanConfig
from megatron_ko.data.clean.pipeline import Pipeline
from megatron_ko.data.clean.stage import Measure
from megatron_ko.data.jobs.chunks import read_chunks
from megatron_ko.data.text.documents import Document, parse_block
from megatron_ko.data.text.inputs import check_inputs, input_bytes
from megatron_ko.data.text.records import Reading
from megatron_ko.errors import DataError

_QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
_BINS = 40


@dataclass(frozen=True)
class Histogram:
    """Counts between edges; the first and last bins also count what is beyond them."""

    edges: list[float]
    counts: list[int]


@dataclass(frozen=True)
class MeasureSummary:
    """How one measured quantity is distributed.

    Attributes:
        stage, reason: the rule that measures it.
        low, high: the limits of the rule.
        outside: share of the documents that it would drop.
        quantiles: by share of the documents.
        histogram: of the values.
    """

    stage: str
    reason: str
    low: float | None
    high: float | None
    outside: float
    quantiles: dict[str, float]
    histogram: Histogram


@dataclass(frozen=True)
class Calibration:
    """What was measured on how many documents."""

    documents: int
    measures: list[MeasureSummary]


def calibrate(reading: Reading, config: CleanConfig, number: int) -> Calibration:
    """Measure documents from the beginning of every input, in proportion to the sizes of the inputs.

    Every quantity is measured on every document, even if an earlier stage would have dropped it, and after the changes
    of earlier stages. So each limit can be judged by itself.

    Args:
        reading: the inputs.
        config: the pipeline.
        number: documents to take.

    Raises:
        DataError: bad input, no document.
    """
    check_inputs(reading.inputs, reading.format)
    pipeline = Pipeline(config)
    values: dict[tuple[str, str], list[float]] = {}
    limits: dict[tuple[str, str], Measure] = {}
    taken = 0
    for document in _sample(reading, number):
        taken += 1
        for stage, measure in pipeline.measures(document):
            values.setdefault((stage, measure.reason), []).append(measure.value)
            limits[stage, measure.reason] = measure
    if not taken:
        raise DataError("there is nothing to measure: no document was found", remedy="check the files and --json-key")
    return Calibration(taken, [_summary(*key, limits[key], values[key]) for key in values])


def _sample(reading: Reading, number: int) -> Iterator[Document]:
    total = sum(input_bytes(path) for path in reading.inputs)
    for path in reading.inputs:
        share = max(1, round(number * input_bytes(path) / max(1, total)))
        yield from islice(_documents(reading, path), share)


def _documents(reading: Reading, path: Path) -> Iterator[Document]:
    one = replace(reading, inputs=(path,), keep_fields=False, chunk_bytes=None)
    for _, chunk in read_chunks(one):
        for block in chunk.blocks:
            yield from parse_block(block, reading.key).documents(block.source)


def _summary(stage: str, reason: str, limits: Measure, given: Sequence[float]) -> MeasureSummary:
    values = np.asarray([value for value in given if not np.isnan(value)] or [0.0])
    outside = sum(
        (limits.low is not None and value < limits.low) or (limits.high is not None and value > limits.high)
        for value in given
    )
    # A few extreme values would squeeze all others into one bar, so the outermost go into the first and last bin.
    low, high = (float(value) for value in np.quantile(values, (0.005, 0.995)))
    edges = np.histogram_bin_edges(values, _BINS, (low, high if high > low else low + 1))
    counts, _ = np.histogram(np.clip(values, edges[0], edges[-1]), edges)
    return MeasureSummary(
        stage=stage,
        reason=reason,
        low=limits.low,
        high=limits.high,
        outside=round(outside / len(given), 4),
        quantiles={str(share): round(float(np.quantile(values, share)), 4) for share in _QUANTILES},
        histogram=Histogram([round(float(edge), 6) for edge in edges], counts.tolist()),
    )
