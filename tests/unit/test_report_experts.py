"""Experts in the report: curves and the map hold what the metric store holds, and a dense run has neither."""

import base64
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from synthetic_run import write_lines, write_run

from megatron_ko.report.experts import read_loads
from megatron_ko.report.html import write_report


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "run", 40)


def with_experts(run: Path, loads: dict[int, list[list[float]]], dropped: float = 0.0) -> str:
    """Give a run experts, and return its page."""
    path = run / "metrics/train.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    more = {"expert_imbalance": 1.5, "expert_imbalance_worst": 2.5, "router_entropy": 1.2, "expert_dropped": dropped}
    write_lines(path, [{**row, **more} for row in rows])
    write_lines(run / "metrics/experts.jsonl", [{"step": step, "loads": load} for step, load in loads.items()])
    return write_report(run).read_text(encoding="utf-8")


def map_of(page: str) -> dict[str, Any]:
    found = re.search(r'id="plot-experts".*?<script type="application/json">(.*?)</script>', page, re.DOTALL)
    assert found
    data: dict[str, Any] = json.loads(found[1])
    shape = (data["layers"], data["experts"], len(data["steps"]))
    return {**data, "bytes": np.frombuffer(base64.b64decode(data["loads"]), dtype=np.uint8).reshape(shape)}


def test_a_dense_run_has_neither(run: Path) -> None:
    page = write_report(run).read_text(encoding="utf-8")
    assert 'id="plot-experts"' not in page and 'id="plot-imbalance"' not in page


def test_the_map_holds_every_load(run: Path) -> None:
    page = with_experts(run, {10: [[1.0, 1.0], [2.0, 0.0]], 20: [[0.5, 1.5], [1.0, 1.0]], 40: [[8.0, 0.125], [1, 1]]})
    data = map_of(page)
    assert data["steps"] == [10, 20, 40] and (data["layers"], data["experts"]) == (2, 2)
    expected = [[[128, 96, 224], [128, 147, 32]], [[160, 128, 128], [0, 128, 128]]]  # 128 + 32 log2(load)
    assert data["bytes"].tolist() == expected
    assert "layer 2</span>" in page and "2 experts" in page
    assert 'id="plot-imbalance"' in page and 'id="plot-entropy"' in page and 'id="plot-dropped"' not in page


def test_dropped_choices_are_plotted_where_there_are_any(run: Path) -> None:
    assert 'id="plot-dropped"' in with_experts(run, {40: [[1.0, 1.0]]}, dropped=0.05)


def test_steps_computed_again_count_once_and_damage_is_passed_over(run: Path) -> None:
    with_experts(run, {10: [[1.0, 1.0]], 20: [[1.0, 1.0]], 30: [[1.0, 1.0]]})
    path = run / "metrics/experts.jsonl"
    with path.open("a", encoding="utf-8") as lines:
        lines.write('{"step":20,"loads":[[1.5,0.5]]}\n[]\n{"step":50,"loads":[[1,1]]}\n{"step":30,"lo')
    steps, loads = read_loads(path, last_step=40)
    assert steps.tolist() == [10, 20] and loads[1].tolist() == [[1.5, 0.5]]


def test_a_large_model_is_thinned_out_in_time(run: Path) -> None:
    even = [[1.0] * 128] * 48
    page = with_experts(run, dict.fromkeys(range(1, 41), even))
    assert len(page) < 2_000_000 and map_of(page)["steps"][0] == 1 and map_of(page)["steps"][-1] == 40
    longer = write_run(run.parent / "longer", 400)
    data = map_of(with_experts(longer, dict.fromkeys(range(2, 401, 2), even)))
    assert len(data["steps"]) == 65 and data["bytes"].size < 400_000
