"""A loss curve at full precision: a refactoring must reproduce it to the last bit on the same kind of machine.

After a deliberate change of what is computed (or of the demo corpus): ``python tests/train/test_golden.py``.
"""

import json
import sys
import tempfile
from pathlib import Path

import pytest
from train_runs import ROOT, NewRun, Run, machine, make_corpus

GOLDEN = ROOT / "tests/golden/loss_curve.json"
SETTINGS = ("eval.interval=0", "model.hidden_dropout=0.1", "training.micro_batch_size=2")


def curve(run: Run) -> dict[str, object]:
    """The curve of a finished run, and what it depends on."""
    corpus = json.loads((run.folder / "lineage.json").read_text())["corpus"][0]["sha256"]
    return {"machine": machine(), "corpus": corpus, "loss_hex": run.column("loss_hex")}


def test_the_loss_curve_is_the_golden_one(new_run: NewRun) -> None:
    run = new_run("run", *SETTINGS)
    assert run.train().returncode == 0
    golden, found = json.loads(GOLDEN.read_text()), curve(run)
    assert found["corpus"] == golden["corpus"], "the demo corpus or its tokenizer changed: record a new golden"
    if found["machine"] == golden["machine"]:
        assert found["loss_hex"] == golden["loss_hex"]
    losses, expected = ([float.fromhex(text) for text in part["loss_hex"]] for part in (found, golden))
    assert losses == pytest.approx(expected, rel=1e-4)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        recorded = Run(make_corpus(Path(place)) / "tiny.yaml", Path(place) / "run", SETTINGS)
        ended = recorded.train()
        sys.exit(ended.stderr) if ended.returncode else GOLDEN.write_text(json.dumps(curve(recorded), indent=1) + "\n")
