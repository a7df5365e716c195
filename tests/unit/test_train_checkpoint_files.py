"""Checkpoint directories as files: atomic publishing, verification, order, retention, listing."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_ko.artifacts import checkpoints
from megatron_ko.errors import CheckpointError
from megatron_ko.storage.files import write_atomic
from megatron_ko.train.retention import apply_retention, surplus


def write(folder: Path, step: int, content: bytes = b"weights" * 100) -> Path:
    temporary = checkpoints.temporary_beside(folder, step)
    (temporary / "model").mkdir()
    (temporary / "model" / "__0_0.distcp").write_bytes(content)
    (temporary / "rng.pt").write_bytes(b"rng")
    names = ("model/__0_0.distcp", "rng.pt")
    manifest = checkpoints.Manifest(
        step=step,
        samples=step * 4,
        tokens=step * 256,
        files={name: checkpoints.record_file(temporary / name) for name in names},
        layout={"world": 2, "tensor": 2},
        state={"step": step},
        metrics={"train.jsonl": 7},
        config={"run": {"name": "x"}},
        config_sha256="c",
        tokenizer="t",
        versions={"torch": "2"},
        created=1.0,
    )
    return checkpoints.publish(temporary, manifest)


def test_publish_and_read_back(tmp_path: Path) -> None:
    directory = write(tmp_path, 20)
    manifest = checkpoints.read_manifest(directory)
    assert directory.name == "step_00000020"
    assert manifest.step == 20 and manifest.total_bytes == 703 and manifest.complete
    assert checkpoints.problems_of(directory, manifest.files.items()) == []
    assert checkpoints.latest_name(tmp_path) == "step_00000020"
    assert [entry.name for entry in tmp_path.iterdir() if entry.name.startswith(".tmp")] == []


def test_a_changed_manifest_is_refused(tmp_path: Path) -> None:
    """It holds the position in the data: one wrong digit there would go on with other samples."""
    path = write(tmp_path, 20) / "manifest.json"
    text = path.read_text()
    for old, new in (('"samples": 80', '"samples": 88'), ('"name": "x"', '"name": "y"')):
        path.write_text(text.replace(old, new))
        with pytest.raises(CheckpointError, match="changed or damaged"):
            checkpoints.read_manifest(path.parent)
    earlier = {name: value for name, value in json.loads(text).items() if name != "manifest_xxh3_128"}
    path.write_text(json.dumps(earlier))  # as versions wrote it that did not hash it
    assert checkpoints.read_manifest(path.parent).samples == 80


def test_steps_are_ordered_as_numbers(tmp_path: Path) -> None:
    others = ("checkpoint-best", "step_x", ".tmp-step_00200000-a")
    for name in ("step_00099500", "step_00100000", "step_100000000", *others):
        (tmp_path / name).mkdir()
    assert checkpoints.steps_in(tmp_path) == [100000000, 100000, 99500]
    assert checkpoints.steps_in(tmp_path / "absent") == []


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (lambda d: (d / "rng.pt").unlink(), "rng.pt is missing"),
        (lambda d: (d / "rng.pt").write_bytes(b"rn"), "rng.pt has 2 bytes instead of 3"),
        (lambda d: (d / "rng.pt").write_bytes(b"rnG"), "rng.pt has a wrong hash"),
    ],
)
def test_damage_is_found_and_the_older_one_is_used(tmp_path: Path, damage: object, expected: str) -> None:
    write(tmp_path, 10)
    newest = write(tmp_path, 20)
    damage(newest)  # type: ignore[operator]
    assert checkpoints.problems_of(newest, checkpoints.read_manifest(newest).files.items()) == [expected]
    assert checkpoints.newest_valid(tmp_path)[1].step == 10
    with pytest.raises(CheckpointError, match=r"step_00000020: rng\.pt"):
        checkpoints.newest_valid(tmp_path, step=20)


def test_a_step_that_is_not_there_is_told_with_those_that_are(tmp_path: Path) -> None:
    write(tmp_path, 5)
    with pytest.raises(CheckpointError, match=r"no checkpoint of step 7[\s\S]*one of: 5"):
        checkpoints.newest_valid(tmp_path, 7)


def test_manifests_that_are_not_manifests(tmp_path: Path) -> None:
    directory = write(tmp_path, 10)
    for text in ("", "{", "[]", "{}", '{"files": {"a": {"bytes": 1}}}', '{"files": 3}'):
        (directory / "manifest.json").write_text(text)
        with pytest.raises(CheckpointError):
            checkpoints.read_manifest(directory)
    (directory / "manifest.json").unlink()
    with pytest.raises(CheckpointError, match="no manifest"):
        checkpoints.read_manifest(directory)
    with pytest.raises(CheckpointError, match="no checkpoint is valid"):
        checkpoints.newest_valid(tmp_path)
    with pytest.raises(CheckpointError, match="there is no checkpoint"):
        checkpoints.newest_valid(tmp_path / "absent")


def test_a_directory_of_the_same_step_is_replaced(tmp_path: Path) -> None:
    (write(tmp_path, 10) / "rng.pt").unlink()
    directory = write(tmp_path, 10, b"new")
    assert (directory / "model" / "__0_0.distcp").read_bytes() == b"new"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["latest", "step_00000010"]


def test_leftovers_are_removed_and_checkpoints_are_not(tmp_path: Path) -> None:
    write(tmp_path, 10)
    checkpoints.temporary_beside(tmp_path, 20)
    (tmp_path / ".tmp-latest-1").write_text("x")
    assert len(checkpoints.remove_leftovers(tmp_path)) == 2
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["latest", "step_00000010"]
    assert checkpoints.remove_leftovers(tmp_path / "absent") == []


def test_atomic_write_leaves_the_old_content_on_failure(tmp_path: Path) -> None:
    path = tmp_path / "latest"
    write_atomic(path, b"old")
    path.chmod(0o600)
    with pytest.raises(OSError):
        write_atomic(tmp_path / "absent" / "latest", b"new")
    # A file that may not grow stands for a full disk.
    code = (
        "import resource, signal, sys; from pathlib import Path\n"
        "from megatron_ko.storage.files import write_atomic\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (4, 4))\n"
        "try: write_atomic(Path(sys.argv[1]), b'longer than four')\n"
        "except OSError: sys.exit(3)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(path)], env=os.environ, check=False).returncode == 3
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["latest"]


@given(valid=st.sets(st.integers(0, 50)), damaged=st.sets(st.integers(0, 50)), keep=st.integers(1, 5))
def test_retention_keeps_the_newest_valid(valid: set[int], damaged: set[int], keep: int) -> None:
    damaged -= valid
    doomed = surplus(valid, damaged, keep)
    left = valid - set(doomed)
    assert left == set(sorted(valid)[-keep:])
    assert all(step < min(left) for step in doomed) if left else doomed == []


def test_retention_on_disk_does_not_count_damaged_ones(tmp_path: Path) -> None:
    for step in (8, 9, 10, 99, 100):
        write(tmp_path, step)
    shutil.rmtree(tmp_path / "step_00000099" / "model")
    assert apply_retention(tmp_path, keep=2) == [8, 9]
    assert checkpoints.steps_in(tmp_path) == [100, 99, 10]


def test_ls_tells_what_is_valid_without_torch(tmp_path: Path) -> None:
    write(tmp_path / "checkpoints", 10)
    (write(tmp_path / "checkpoints", 20) / "rng.pt").write_bytes(b"RNG")
    (tmp_path / "checkpoints" / "step_00000030").mkdir()
    code = (
        "import sys; from megatron_ko.cli import checkpoint; import typer\n"
        "try: checkpoint.app(['ls', sys.argv[1], '--json'], standalone_mode=False)\n"
        "finally: assert 'torch' not in sys.modules and 'numpy' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    rows = json.loads(done.stdout)
    assert [(row["step"], row["valid"], row["latest"]) for row in rows] == [
        (10, True, False),
        (20, False, True),
        (30, False, False),
    ]
    assert rows[0]["tokens"] == 2560 and rows[0]["bytes"] == 703 and rows[0]["layout"] == {"world": 2, "tensor": 2}
    assert rows[1]["problems"] == ["rng.pt has a wrong hash"] and rows[2]["problems"]


def test_ls_for_people_is_one_line_a_checkpoint_and_says_when_there_is_none(tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from megatron_ko.cli.checkpoint import app

    assert CliRunner().invoke(app, ["ls", str(tmp_path)]).stdout == f"no checkpoints in {tmp_path}\n"
    assert json.loads(CliRunner().invoke(app, ["ls", str(tmp_path), "--json"]).stdout) == []
    (write(tmp_path, 20) / "model" / "__0_0.distcp").write_bytes(b"weighty" * 100)
    heading, row = CliRunner().invoke(app, ["ls", str(tmp_path)]).stdout.splitlines()
    assert heading.split()[0] == "checkpoint" and "damaged: model/__0_0.distcp has a wrong hash" in row
