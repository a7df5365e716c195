"""The report page: self-contained, complete, true to the store, and quick for long runs."""

import json
import random
import re
import time
from html.parser import HTMLParser
from pathlib import Path

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st
from synthetic_run import train_row, write_lines, write_run
from typer.testing import CliRunner

from megatron_ko.cli.report import report
from megatron_ko.errors import DataError
from megatron_ko.report.axis import Axis, labels
from megatron_ko.report.html import duration, write_report
from megatron_ko.report.plots import loss_curve_png
from megatron_ko.report.store import read_run
from megatron_ko.report.summary import summarise

PLOTS = ["loss", "lr", "grad-norm", "throughput", "step-time", "memory", "validation"]
verb = typer.Typer()
verb.command()(report)
FETCHING = {"src", "href", "action", "data", "poster", "srcset", "background", "xlink:href"}


class Page(HTMLParser):
    """Checks that tags are balanced and collects ids, attributes and the data of the plots."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.attributes: set[str] = set()
        self.tags: set[str] = set()
        self.open: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        self.ids += [value for name, value in attrs if name == "id" and value]
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes |= {name for name, _ in attrs}

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "demo run", 120)


def page_of(run: Path) -> str:
    return write_report(run).read_text(encoding="utf-8")


def data_of(page: str, key: str) -> dict[str, dict[str, list[float]]]:
    """The points behind a plot, by the name of the curve."""
    found = re.search(rf'id="plot-{key}".*?<script type="application/json">(.*?)</script>', page, re.DOTALL)
    assert found
    return {curve["name"]: curve for curve in json.loads(found[1])["curves"]}


def test_nothing_is_fetched(run: Path) -> None:
    text = page_of(run)
    page = Page(text)
    assert not page.open
    assert not page.attributes & FETCHING
    assert not page.tags & {"link", "img", "iframe", "object", "embed", "image", "use"}
    assert "url(" not in text and "@import" not in text and "//" not in re.sub(r"<pre>.*?</pre>", "", text)
    assert "default-src 'none'" in text


def test_every_plot_is_there_and_drawn(run: Path) -> None:
    text = page_of(run)
    assert [i for i in Page(text).ids if i.startswith("plot-")] == [f"plot-{key}" for key in PLOTS]
    for key in PLOTS:
        figure = re.search(rf'id="plot-{key}".*?</figure>', text, re.DOTALL)
        assert figure and re.search(r'<path class="(raw|line|dots)" d="M[\d.]+ [\d.]+L', figure[0])


def test_plots_hold_the_values_of_the_store(run: Path) -> None:
    text = page_of(run)
    rows = [json.loads(line) for line in (run / "metrics" / "train.jsonl").read_text().splitlines()]
    for key, curve, column, scale in (
        ("loss", "each step", "loss", 1),
        ("lr", "learning rate", "lr", 1),
        ("grad-norm", "each step", "grad_norm", 1),
        ("throughput", "each step", "tokens_per_s", 1),
        ("step-time", "each step", "step_time_s", 1),
        ("memory", "peak", "memory_peak", 2**30),
    ):
        drawn = data_of(text, key)[curve]
        stored = {row["step"]: row[column] / scale for row in rows if row[column] is not None}
        assert drawn["x"] == list(stored)
        assert drawn["y"] == pytest.approx(list(stored.values()), rel=1e-4)
    valid = [json.loads(line) for line in (run / "metrics" / "valid.jsonl").read_text().splitlines()]
    assert data_of(text, "loss")["validation"]["y"] == pytest.approx([v["valid_loss"] for v in valid], rel=1e-4)
    assert data_of(text, "validation")["validation"]["y"] == pytest.approx(
        [v["bits_per_byte"] for v in valid], rel=1e-4
    )


def test_key_figures_are_on_the_page(run: Path) -> None:
    figures, text = summarise(read_run(run)), Page(page_of(run)).text
    last = json.loads((run / "metrics" / "train.jsonl").read_text().splitlines()[-1])
    assert figures.final_loss == last["loss"]
    for part in (
        "한국어 데모", "complete",
        f"{last['loss']:.4f}", f"{figures.final_valid_loss:.4f}", f"{figures.bits_per_byte:.4f}",
        "245,760", "resumed 1 time", "1 step skipped", "7 steps computed again", "1,312,896 parameters",
        "step_00000120", "15.8 MB", "0a1b2c3d4e5f with changes", "data/한국어", "num_layers: 4", "resumed from 60",
        "world 4, tensor 2, pipeline 2, distributed optimizer",
    ):  # fmt: skip
        assert part in text, part


def test_a_run_on_pairs_shows_accuracy_and_rewards(run: Path) -> None:
    figures = {"reward_good": 0.5, "reward_bad": -1.0, "logp_good": -1.2, "logp_bad": -2.0, "margin": 1.5}
    for name, nothing in (("train", {}), ("valid", {"perplexity": None, "bits_per_byte": None})):
        path = run / "metrics" / f"{name}.jsonl"
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        told = [{**row, **figures, **nothing, "accuracy": 0.5 + row["step"] / 1000} for row in rows]
        path.write_text("".join(json.dumps(row) + "\n" for row in told))
    text = page_of(run)
    plots = [key.removeprefix("plot-") for key in Page(text).ids if key.startswith("plot-")]
    assert plots == [*PLOTS[:-1], "accuracy", "rewards", "logp"], "no empty plot of bits per byte"
    assert data_of(text, "accuracy")["training"]["y"][0] == pytest.approx(0.501, rel=1e-4)
    assert set(data_of(text, "rewards")) == {"better answers", "worse answers"}
    assert "nats a pair" in text and "62.0%" in Page(text).text


def test_a_restart_from_the_beginning_is_no_single_session(tmp_path: Path) -> None:
    text = write_report(write_run(tmp_path, steps=12, resumed=0)).read_text(encoding="utf-8")
    assert "started 2 times" in text and "one session" not in text and text.count("<td>the beginning</td>") == 2


def test_sessions_and_skips_are_marked_on_every_plot(run: Path) -> None:
    text = page_of(run)
    assert text.count('<path class="resumed" d="M500.0 0V1000"/>') == len(PLOTS)
    assert text.count('<path class="skipped" d="M333.0 1000v-50"/>') == len(PLOTS)


def test_names_cannot_inject_anything(tmp_path: Path) -> None:
    run = write_run(tmp_path / "r", 20, name='"<script>alert(1)</script>"')
    (run / "config.resolved.yaml").write_text("run: {name: '</pre><b>'}\n")
    text = page_of(run)
    assert "<script>alert" not in text
    assert "</pre><b>" not in text
    assert not Page(text).open


@pytest.mark.parametrize("steps", [1, 2])
def test_the_first_steps_of_a_run_already_have_a_report(tmp_path: Path, steps: int) -> None:
    write_lines(tmp_path / "metrics" / "train.jsonl", [{"step": s, "loss": 8.0} for s in range(1, steps + 1)])
    page = Page(page_of(tmp_path))
    assert len([i for i in page.ids if i.startswith("plot-")]) == len(PLOTS)
    assert "this run was not validated yet" in page.text
    assert "config.resolved.yaml is missing" in page.text


def test_long_runs_take_seconds_and_keep_their_spikes(tmp_path: Path) -> None:
    rng = random.Random(1)
    rows = [train_row(step, 200_000, rng) for step in range(1, 200_001)]
    rows[123_455]["loss"] = 77.5
    write_lines(tmp_path / "metrics" / "train.jsonl", rows)
    start = time.process_time()
    path = write_report(tmp_path)
    assert time.process_time() - start < 15
    assert path.stat().st_size < 1_000_000
    curve = data_of(path.read_text(encoding="utf-8"), "loss")["each step"]
    assert curve["y"][curve["x"].index(123_456)] == 77.5


def test_a_new_report_replaces_the_old_one(run: Path) -> None:
    assert write_report(run) == write_report(run) == run / "report" / "index.html"
    assert [p.name for p in (run / "report").iterdir()] == ["index.html"]


def test_the_verb_prints_the_figures(run: Path) -> None:
    printed = json.loads(CliRunner().invoke(verb, [str(run), "--json"]).stdout)
    assert printed == {**summarise(read_run(run)).as_dict(), "report": str(run / "report" / "index.html")}
    assert CliRunner().invoke(verb, [str(run)]).stdout.strip() == printed["report"]


def test_a_folder_without_metrics_is_refused_and_left_alone(tmp_path: Path) -> None:
    result = CliRunner().invoke(verb, [str(tmp_path)])
    assert isinstance(result.exception, DataError)
    assert list(tmp_path.iterdir()) == []


def test_loss_curve_picture(run: Path) -> None:
    path = loss_curve_png(run, run / "pictures" / "loss.png")
    content = path.read_bytes()
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    assert (int.from_bytes(content[16:20]), int.from_bytes(content[20:24])) == (1400, 700)
    assert [p.name for p in path.parent.iterdir()] == ["loss.png"]


@pytest.mark.parametrize(
    ("seconds", "text"), [(4.4, "4 s"), (61, "1 min 1 s"), (7500, "2 h 5 min"), (360_000, "4 d 4 h"), (59.9, "60 s")]
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@given(low=st.floats(-1e6, 1e6), span=st.floats(1e-4, 1e6))
def test_labels_of_an_axis_are_all_different(low: float, span: float) -> None:
    """A loss between 1.384 and 1.396 once had 1.39 four times."""
    axis = Axis(low=low, high=low + max(span, abs(low) * 1e-4))
    names = labels(axis.ticks(5))
    assert len(set(names)) == len(names)
    assert all(len(name) <= 11 for name in names)
