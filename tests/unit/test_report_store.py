"""Reading run directories, key figures and the reduction of long series."""

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from synthetic_run import valid_row, write_lines, write_run

from megatron_ko.errors import DataError
from megatron_ko.metrics.schema import TRAIN
from megatron_ko.report.axis import fit_axis, round_step, short
from megatron_ko.report.reduce import keep_extremes, smooth
from megatron_ko.report.store import read_run, read_table
from megatron_ko.report.summary import summarise


def row(step: int, loss: float) -> dict[str, object]:
    return {"step": step, "loss": loss}


def test_figures_are_those_of_the_store(tmp_path: Path) -> None:
    rows = [
        {**row(1, 5.0), "tokens": 100, "tokens_per_s": 10.0, "step_time_s": 10.0, "memory_peak": 7, "time": 100.0},
        {**row(2, 3.0), "tokens": 200, "tokens_per_s": 30.0, "step_time_s": 2.0, "memory_peak": 9, "time": 103.0},
        {**row(3, 4.0), "tokens": 300, "tokens_per_s": 20.0, "step_time_s": 3.0, "memory_peak": 8, "time": 107.5},
        {**row(4, 1.0), "tokens": 400, "tokens_per_s": 20.0, "step_time_s": 3.0, "memory_peak": 8, "skipped": True},
    ]
    valid = [
        {"step": 2, "valid_loss": 3.5, "bits_per_byte": 1.2, "perplexity": 33.0, "eval_time_s": 0.5},
        {"step": 3, "valid_loss": 3.75, "bits_per_byte": 1.3, "perplexity": 42.0, "eval_time_s": 0.5},
    ]
    write_lines(tmp_path / "metrics" / "train.jsonl", rows)
    write_lines(tmp_path / "metrics" / "valid.jsonl", valid)
    figures = summarise(read_run(tmp_path))
    assert (figures.run, figures.steps, figures.planned_steps, figures.tokens) == (tmp_path.name, 4, None, 400)
    assert (figures.final_loss, figures.best_loss, figures.best_loss_step) == (4.0, 3.0, 2)
    assert (figures.final_valid_loss, figures.best_valid_loss, figures.best_valid_step) == (3.75, 3.5, 2)
    assert (figures.bits_per_byte, figures.perplexity) == (1.3, 42.0)
    assert (figures.median_tokens_per_s, figures.memory_peak, figures.skipped_steps) == (20.0, 9, 1)
    assert (figures.training_time_s, figures.elapsed_s) == (19.0, 7.5)
    assert figures.median_mfu is None


def test_replayed_steps_count_once_and_the_later_ones_win(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    write_lines(path, [row(s, s) for s in range(1, 28)] + [row(s, 100 + s) for s in range(21, 25)])
    table = read_table(path, TRAIN.columns())
    assert table["step"].tolist() == list(range(1, 25))
    assert table["loss"].tolist() == [*range(1, 21), 121, 122, 123, 124]
    assert table.superseded == 7


def test_steps_that_training_moved_aside_are_counted(tmp_path: Path) -> None:
    write_run(tmp_path, 30, resumed=10)
    write_lines(
        tmp_path / "metrics" / "superseded.jsonl",
        [{"step": 11, "grad_norm": 1.0}, valid_row(12, 30)],
    )
    assert summarise(read_run(tmp_path)).recomputed_steps == 1


def test_a_torn_line_is_counted_and_the_rest_is_read(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    path.write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "loss": NaN}\n[3]\n{"step": "x"}\n{"step": 4, "lo')
    table = read_table(path, TRAIN.columns())
    assert (len(table), table.unreadable) == (2, 3)
    assert math.isnan(table["loss"][1])


def test_validations_of_steps_that_were_taken_back_are_left_out(tmp_path: Path) -> None:
    write_run(tmp_path, 30, resumed=None)
    write_lines(tmp_path / "metrics" / "train.jsonl", [row(s, 1.0) for s in range(1, 13)])
    assert read_run(tmp_path).valid["step"].tolist() == [5, 10]


@pytest.mark.parametrize("content", [None, "", "nonsense\n"])
def test_no_metrics_is_a_user_error(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "metrics").mkdir()
        (tmp_path / "metrics" / "train.jsonl").write_text(content)
    with pytest.raises(DataError) as caught:
        read_run(tmp_path)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("lineage.json", "{"),
        ("lineage.json", "[1]"),
        ("lineage.json", '{"sessions": 5}'),
        ("lineage.json", '{"corpus": ["a"]}'),
        ("config.resolved.yaml", "a: ["),
        ("config.resolved.yaml", "[a]"),
        ("config.resolved.yaml", "run: 5"),
    ],
)
def test_damaged_files_are_named(tmp_path: Path, name: str, content: str) -> None:
    write_run(tmp_path, 20)
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=name):
        read_run(tmp_path)


def test_a_checkpoint_without_manifest_is_listed_as_such(tmp_path: Path) -> None:
    write_run(tmp_path, 20)
    (tmp_path / "checkpoints" / "step_00000010" / "manifest.json").write_text("{")
    first, second = read_run(tmp_path).checkpoints
    assert (first.manifest, first.bytes) == ({}, 0)
    assert (second.manifest["step"], second.bytes) == (20, 15_754_752)


VALUES = st.floats(-1e6, 1e6) | st.just(math.nan)


@settings(max_examples=60)
@given(y=arrays(np.float64, st.integers(0, 400), elements=VALUES), buckets=st.integers(1, 20))
def test_reduction_keeps_ends_and_extremes(y: np.ndarray, buckets: int) -> None:
    x = np.arange(len(y), dtype=np.float64) ** 1.1
    chosen = keep_extremes(x, y, buckets)
    known = np.flatnonzero(np.isfinite(y))
    assert (np.diff(chosen) > 0).all()
    assert len(chosen) <= 4 * buckets
    assert np.isin(chosen, known).all()
    if len(known):
        assert (chosen[0], chosen[-1]) == (known[0], known[-1])
        assert (y[chosen].min(), y[chosen].max()) == (y[known].min(), y[known].max())


def test_smoothing_is_the_mean_of_the_window() -> None:
    y = np.array([1.0, 2.0, np.nan, 4.0, 5.0, 12.0])
    expected = [np.nanmean(y[max(0, i - 1) : i + 2]) for i in range(6)]
    assert smooth(y, 3) == pytest.approx(expected)
    assert np.isnan(smooth(np.array([np.nan, np.nan]), 3)).all()


def test_one_outlier_does_not_ruin_the_axis() -> None:
    values = np.append(np.linspace(1.0, 2.0, 1000), 500.0)
    axis = fit_axis(values)
    assert 2.0 < axis.high < 3.0
    assert fit_axis(values[:-1]).high == pytest.approx(2.06)


@pytest.mark.parametrize("log", [True, False])
def test_ticks_are_inside_and_even_constant_values_have_an_axis(log: bool) -> None:
    for values in (np.array([3.0]), np.array([1e-5, 3e4]), np.array([0.9, 1.1]), np.zeros(0), np.array([0.0, 0.0])):
        axis = fit_axis(values, log=log)
        ticks = axis.ticks(5)
        assert axis.low < axis.high
        assert len(ticks) >= 2
        near = 1e-9 * (axis.high - axis.low)
        assert all(axis.low - near <= tick <= axis.high + near for tick in ticks)


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (1234, "1.23k"), (999.9, "1k"), (3e-4, "0.0003"), (2.5e9, "2.5B")]
)
def test_short_numbers(value: float, text: str) -> None:
    assert short(value) == text


def test_round_steps() -> None:
    assert [round_step(s) for s in (0.011, 0.2, 0.21, 3.0, 70.0)] == pytest.approx([0.02, 0.2, 0.25, 5.0, 100.0])
