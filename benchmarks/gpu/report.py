"""The table of a RESULTS.json, as `benchmarks/record.py` takes it into docs/performance.md.

python benchmarks/record.py gpu/report.py runs/gpu-check/RESULTS.json
"""

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from gpu.steps import GOALS, Goal

Outcomes = Sequence[Mapping[str, Any]]


def main() -> None:
    content = merged([json.loads(Path(name).read_text(encoding="utf-8")) for name in sys.argv[1:]])
    # record.py takes this line for the conditions of the measurement, which was not made where it runs.
    print(f"measured: {conditions(content)}")
    print("\n".join(table(content["steps"])))


def merged(contents: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One content, in the first one's order."""
    steps: dict[str, Any] = {}
    for step in (step for content in contents for step in content["steps"]):
        if step["result"] or step["name"] not in steps:
            steps[step["name"]] = step
    return {**contents[0], "steps": list(steps.values())}


def conditions(content: Mapping[str, Any]) -> str:
    """Date, device and versions, from the step that has looked at them."""
    seen = next((step["result"] for step in content["steps"] if "environment" in step["result"]), None)
    if seen is None:
        return f"{content['date']}, device unknown"
    found = seen["environment"]
    versions = [f"{name} {release}" for name, release in found["packages"].items()]
    cuda = [f"driver {found['driver']}, cuDNN {found['cudnn']}"] if found["driver"] else []
    parts = [content["date"], f"{found['device']} ({found['backend']})", *cuda, f"Python {found['python']}", *versions]
    return ", ".join(parts)


def table(outcomes: Outcomes) -> Iterator[str]:
    """Lines: throughput, goals, attention, comparisons, the rest, and what was not run."""
    yield from throughput(outcomes)
    yield from goals(outcomes)
    yield from attention(outcomes)
    yield from modules(outcomes)
    yield from pairs(outcomes)
    yield from aftermath(outcomes)
    yield from suite(outcomes)
    yield from states(outcomes)


def throughput(outcomes: Outcomes) -> Iterator[str]:
    """A row a job, beside the same network under transformers."""
    rows = [outcome for outcome in outcomes if "tokens_per_s" in outcome["result"]]
    if not rows:
        return
    yield rows[0]["result"]["convention"]
    yield (
        f"{'':<38}{'batch':>11}{'ms/step':>9}{'tokens/s':>10}{'TFLOP/s':>9}{'of bf16':>9}{'GiB':>7}"
        f"{'x transformers':>16}{'busy':>7}"
    )
    speeds = {row["name"]: row["result"]["tokens_per_s"] for row in rows}
    for row in rows:
        result = row["result"]
        base = speeds.get(f"{row['name'].split()[0]} transformers")
        share, profile = result["peak_share"], result.get("profile")
        cells = (
            f"{result['batch']} x {result['length']:,}".rjust(11),
            f"{1e3 * result['seconds']:>9.1f}{result['tokens_per_s']:>10.0f}{result['tflops']:>9.1f}",
            f"{share:>9.1%}" if share is not None else f"{'-':>9}",
            f"{result['peak_gib']:>7.1f}",
            f"{result['tokens_per_s'] / base:>15.2f}x" if base else f"{'-':>16}",
            f"{profile['device_busy_ms'] / profile['wall_ms']:>7.0%}" if profile else f"{'-':>7}",
        )
        notes = ", ".join(filter(None, [result.get("note"), result.get("attention")]))
        yield f"{row['name']:<38}{''.join(cells)}{'  ' + notes if notes else ''}"
    yield ""


def goals(outcomes: Outcomes) -> Iterator[str]:
    """What was to be reached, and whether it was; only of steps that were measured."""
    results = {outcome["name"]: outcome["result"] for outcome in outcomes if "tokens_per_s" in outcome["result"]}
    lines = [goal_line(goal, results) for goal in GOALS if goal.step in results]
    if lines:
        yield from (*lines, "")


def goal_line(goal: Goal, results: Mapping[str, Any]) -> str:
    """One goal in words."""
    found = results[goal.step]
    words, met = [], []
    if found["peak_share"] is not None:
        met.append(found["peak_share"] >= goal.peak_share)
        words.append(f"{found['peak_share']:.1%} of the bf16 peak (goal {goal.peak_share:.0%})")
    if goal.times and goal.other in results:
        times = found["tokens_per_s"] / results[goal.other]["tokens_per_s"]
        met.append(times >= goal.times)
        words.append(f"{times:.2f}x {goal.other} (goal {goal.times}x)")
    return f"{goal.step}: {', '.join(words)}: {'met' if all(met) else 'NOT MET'}"


def attention(outcomes: Outcomes) -> Iterator[str]:
    """A row a kernel."""
    rows = [row for outcome in outcomes for row in outcome["result"].get("attention") or [] if isinstance(row, dict)]
    if not rows:
        return
    yield f"{'attention, forward and backward':<38}{'ms':>11}{'TFLOP/s':>9}{'difference':>12}"
    for row in rows:
        figures = f"{row['ms']:>11.2f}{row['tflops']:>9.0f}{row['difference']:>12.1e}  " if "ms" in row else "  "
        yield f"{row['kernel']:<38}{figures}{row['problem']}".rstrip()
    yield ""


def modules(outcomes: Outcomes) -> Iterator[str]:
    """Transformer Engine's modules against PyTorch."""
    rows = [row for outcome in outcomes for row in outcome["result"].get("modules", [])]
    if not rows:
        return
    yield f"{'Transformer Engine against PyTorch':<38}{'difference':>11}{'allowed':>9}"
    for row in rows:
        figures = f"{row['difference']:>11.1e}{row['limit']:>9.0e}  " if "difference" in row else "  "
        yield f"{row['module']:<38}{figures}{row['problem']}".rstrip()
    yield ""


def pairs(outcomes: Outcomes) -> Iterator[str]:
    """Small cases whose losses have to agree."""
    rows = [row for outcome in outcomes for row in outcome["result"].get("pairs", [])]
    if not rows:
        return
    compared = [row for row in rows if row["compared"]]
    alike = sum(not row["problem"] for row in compared)
    yield f"small cases, losses in pairs: {alike} of {len(compared)} alike, {len(rows) - len(compared)} not compared"
    yield f"{'':<64}{'difference':>11}{'allowed':>9}"
    for row in rows:
        found = f"{row['difference']:>11.1e}" if row["difference"] is not None else f"{'-':>11}"
        state = row["problem"] if row["compared"] else f"not compared: {row['problem']}"
        yield f"{row['pair']:<64}{found}{row['tolerance']:>9.0e}  {state}".rstrip()
    yield ""


def aftermath(outcomes: Outcomes) -> Iterator[str]:
    """Saving and generating."""
    for result in (outcome["result"] for outcome in outcomes if "save" in outcome["result"]):
        save = result["save"]
        yield (
            f"{result['model']}: a save of {save['bytes'] / 1e9:.2f} GB holds training up for {save['stall_s']:.2f} s "
            f"({save['mb_per_s']:.0f} MB/s)"
        )
        for row in result.get("generation", []):
            yield (
                f"{result['model']}: generates {row['tokens_per_s']:.1f} tokens/s, {row['batch']} at a time, "
                f"{row['new_tokens']} each"
            )
        yield ""


def suite(outcomes: Outcomes) -> Iterator[str]:
    """The numbers of tests."""
    for outcome in (outcome for outcome in outcomes if "counts" in outcome["result"]):
        counts = ", ".join(f"{number} {word}" for word, number in outcome["result"]["counts"].items())
        yield from (f"{outcome['name']}: {counts} in {outcome['seconds']:.0f} s", "")


def states(outcomes: Outcomes) -> Iterator[str]:
    """How every step ended."""
    for outcome in outcomes:
        yield f"{outcome['name']:<38}{outcome['seconds']:>8.1f} s  {outcome['status']}"


if __name__ == "__main__":
    main()
