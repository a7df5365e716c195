"""`make gpu-check` without a GPU: what counts as alike, what is run in limited time, and what the table says."""

import json
import math
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from gpu import compare, report, runner, steps
from gpu.cases import CASES, FP32, PAIRS, Case, Pair
from gpu.runner import DONE, FAILED, NOT_RUN, OVER, Outcome
from gpu.step_options import Given
from gpu.steps import Step
from record import separate

from megatron_ko.data.tokens.preprocess import PreprocessOptions, preprocess

ROOT = Path(__file__).parents[2]
PAIR = Pair("left", "right", 1e-2)
CURVE = [7.6, 7.1, 6.8]


def test_alike_within_the_tolerance() -> None:
    verdict = compare.judge(PAIR, {"left": [7.6, 7.1, 6.75], "right": CURVE}, {})
    assert verdict.difference == pytest.approx(0.05 / 6.8) and not verdict.problem and verdict.compared


@pytest.mark.parametrize(
    ("left", "why"),
    [
        ([7.6, 7.1, 6.9], "too far apart"),
        ([7.6, None, 6.8], "too far apart"),
        ([7.6, math.nan, 6.8], "too far apart"),
        ([7.6, 7.1], "2 steps against 3"),
        ([], "0 steps against 3"),
    ],
)
def test_a_broken_side_is_found(left: list[float | None], why: str) -> None:
    verdict = compare.judge(PAIR, {"left": left, "right": CURVE}, {})
    assert verdict.problem == why and verdict.compared


def test_a_case_that_failed_is_a_problem_and_one_that_cannot_run_is_none() -> None:
    assert compare.judge(PAIR, {"right": CURVE}, {}).compared
    verdict = compare.judge(PAIR, {"right": CURVE}, {"left": "needs a CUDA device"})
    assert not verdict.compared and verdict.problem == "needs a CUDA device"


@pytest.mark.parametrize(
    ("needs", "device", "has_engine", "why"),
    [
        ("", "cpu", False, ""),
        ("engine", "cpu", False, ""),
        ("engine", "cuda", False, "needs Transformer Engine"),
        ("engine", "cuda", True, ""),
        ("cuda", "cpu", False, "needs a CUDA device"),
        ("cuda", "cuda", True, ""),
    ],
)
def test_what_a_machine_leaves_out(needs: str, device: str, has_engine: bool, why: str) -> None:
    assert compare.why_left_out(Case((), needs), device, has_engine) == why


def test_every_case_is_compared() -> None:
    named = {name for pair in PAIRS for name in (pair.left, pair.right)}
    assert named == set(CASES)
    assert all(pair.left != pair.right and pair.tolerance <= 2e-2 for pair in PAIRS)


def test_a_case_that_learns_otherwise_fails_the_step(tmp_path: Path, tokenizer_folder, korean) -> None:  # type: ignore[no-untyped-def]
    """Real runs, one after another in one process: the same words give the same losses, others do not."""
    (tmp_path / "tokenizer").symlink_to(tokenizer_folder("unigram"))
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text("".join(json.dumps({"text": text}) + "\n" for text in korean(2000, 1)), encoding="utf-8")
    preprocess(PreprocessOptions(inputs=(corpus,), tokenizer=tmp_path / "tokenizer", output=tmp_path / "corpus"))
    cases = {"plain": Case(FP32), "again": Case(FP32), "sabotaged": Case((*FP32, "optim.lr=0.1"))}
    given = Given(tmp_path, {"workers": 1, "cpu_workers": 0}, tmp_path, "cpu")
    assert compare.run(given, cases, [Pair("again", "plain", 1e-9), Pair("sabotaged", "plain", 2e-2)]) == 1
    same, other = json.loads((tmp_path / "result.json").read_text())["pairs"]
    assert same["difference"] == 0.0 and not same["problem"]
    assert other["difference"] > 2e-2 and other["problem"] == "too far apart"


def step(name: str, needs_s: float, beside: bool = False) -> Step:
    return Step(name, "none", limit_s=60, needs_s=needs_s, beside=beside)


def test_steps_that_do_not_fit_are_named_and_shorter_ones_are_run() -> None:
    given: list[tuple[str, float]] = []

    def start(of: Step, limit_s: float) -> Outcome:
        given.append((of.name, limit_s))
        return Outcome(of.name, DONE)

    plan = [step("first", 1), step("long", 500), step("short", 1), step("a", 1, True), step("b", 500, True)]
    outcomes = runner.run_all(plan, time.monotonic() + 10, start)
    assert {outcome.name: outcome.status for outcome in outcomes} == {
        "first": DONE, "long": NOT_RUN, "short": DONE, "a": DONE, "b": NOT_RUN,
    }  # fmt: skip
    assert [name for name, _ in given] == ["first", "short", "a"]
    assert all(limit <= 10 for _, limit in given)


@pytest.mark.parametrize(
    ("code", "limit_s", "status", "result"),
    [
        ("", 20.0, DONE, {"seen": 1}),
        ("sys.exit(3)", 20.0, FAILED, {"seen": 1}),
        ("import subprocess, time; subprocess.Popen(['sleep', '60']); time.sleep(60)", 2.0, OVER, {"seen": 1}),
    ],
)
def test_a_step_ends_at_its_limit_and_what_it_wrote_stays(
    tmp_path: Path, code: str, limit_s: float, status: str, result: dict[str, int]
) -> None:
    package = tmp_path / "gpu"
    package.mkdir()
    (package / "__init__.py").touch()
    text = f"import sys, pathlib; pathlib.Path(sys.argv[2], 'result.json').write_text('{{\"seen\": 1}}')\n{code}\n"
    (package / "toy.py").write_text(text)
    started = time.monotonic()
    outcome = runner.run_step(
        Step("toy", "toy", limit_s=60, needs_s=1), limit_s, tmp_path / "out", {"PYTHONPATH": str(tmp_path)}
    )
    assert (outcome.status, outcome.result) == (status, result)
    assert time.monotonic() - started < 30


def test_the_most_important_figures_come_first() -> None:
    names = [step.name for step in steps.on_cuda()]
    assert len(names) == len(set(names)) and names[0] == "environment"
    assert {goal.step for goal in steps.GOALS} <= set(names[:8])
    wanted = {f"{network} {recipe}" for network in steps.NETWORKS for recipe in steps.RECIPES}
    assert wanted | {f"{name} x4" for name in wanted} <= set(names)
    assert {f"{network} {peer}" for network in steps.NETWORKS for peer in steps.PEERS} <= set(names)


def test_only_some_steps_and_which_run_at_once() -> None:
    assert [step.name for step in steps.chosen("cuda", ["ko-1b bf16"])] == ["ko-1b bf16", "ko-1b bf16 x4"]
    groups = steps.together(steps.on_cuda())
    assert [[step.name for step in group] for group in groups if len(group) > 1] == [["small cases", "tests/gpu"]]


def measured(name: str, tokens: float, share: float | None) -> dict[str, object]:
    result = {
        "way": "", "seconds": 0.5, "tokens_per_s": tokens, "tflops": 500.0, "peak_share": share, "peak_gib": 90.0,
        "batch": 4, "length": 4096, "convention": "so counted", "profile": {"device_busy_ms": 9.0, "wall_ms": 10.0},
    }  # fmt: skip
    return {"name": name, "status": DONE, "seconds": 50.0, "result": result}


def test_the_table_compares_with_transformers_and_with_the_goals() -> None:
    outcomes = [
        measured("frankenstallm-3b bf16", 26000.0, 0.56),
        measured("frankenstallm-3b fp8_current", 30000.0, 0.64),
        measured("frankenstallm-3b transformers", 20000.0, 0.41),
        {"name": "ko-1b bf16", "status": NOT_RUN, "seconds": 0.0, "result": {}},
    ]
    text = "\n".join(report.table(outcomes))
    assert re.search(r"frankenstallm-3b bf16 .* 56.0% .* 1.30x +90%", text)
    assert "56.0% of the bf16 peak (goal 55%), 1.30x frankenstallm-3b transformers (goal 1.3x): met" in text
    assert "1.50x frankenstallm-3b transformers (goal 1.75x): NOT MET" in text
    assert re.search(r"ko-1b bf16 +0.0 s  not run: out of time", text)


def test_the_table_tells_pairs_that_differ() -> None:
    rows = [
        {"pair": "a, b", "difference": 0.1, "tolerance": 0.02, "problem": "too far apart", "compared": True},
        {"pair": "c, d", "difference": None, "tolerance": 0.02, "problem": "needs a CUDA device", "compared": False},
    ]
    text = "\n".join(report.table([{"name": "x", "status": FAILED, "seconds": 1.0, "result": {"pairs": rows}}]))
    assert "0 of 1 alike, 1 not compared" in text and re.search(r"a, b +1.0e-01 +2e-02  too far apart", text)


def test_a_later_call_fills_in_what_no_time_was_left_for() -> None:
    missing = {"name": "b", "status": NOT_RUN, "seconds": 0.0, "result": {}}
    first = {"date": "2026-01-02", "steps": [measured("a", 1.0, None), missing]}
    second = {"date": "2026-01-02", "steps": [measured("b", 2.0, None), {**missing, "name": "a"}]}
    steps = report.merged([first, second])["steps"]
    assert [(step["name"], step["status"]) for step in steps] == [("a", DONE), ("b", DONE)]


def test_a_measurement_made_elsewhere_says_its_own_conditions() -> None:
    assert separate("measured: 2026-01-02, NVIDIA H200\nrow\n") == ("2026-01-02, NVIDIA H200", "row\n")
    here, table = separate("row\n")
    assert "Python" in here and table == "row\n"


def test_what_is_packed_is_what_was_tested() -> None:
    """The versions of constraints.txt for Python 3.12."""
    pinned = {line.partition(";")[0].strip() for line in (ROOT / "constraints.txt").read_text().splitlines()}
    packed = (ROOT / "benchmarks/gpu/requirements.txt").read_text().splitlines()
    wheels = {line for line in packed if line and not line.startswith("#")}
    assert {wheel for wheel in wheels if not wheel.startswith("liger-kernel")} <= pinned


def test_the_check_starts_without_any_package() -> None:
    """Wheels are installed by it."""
    imported = {"gpu.steps", "gpu.runner", "gpu.report"}
    code = (
        f"import sys; sys.path[:0] = [{str(ROOT / 'benchmarks')!r}]; import {', '.join(sorted(imported))}; "
        "print(sorted({'torch', 'megatron_ko', 'pydantic', 'numpy'} & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_results_are_replaced_whole(tmp_path: Path) -> None:
    runner.write_json(tmp_path / "RESULTS.json", {"steps": runner.as_json([Outcome("a", DONE, 1.0, {"x": 1})])})
    assert json.loads((tmp_path / "RESULTS.json").read_text())["steps"][0]["result"] == {"x": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["RESULTS.json"]
