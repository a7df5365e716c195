"""What is read stays while another process saves checkpoints and removes older ones."""

import multiprocessing
import os
import pickle
import signal
import time
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest
from patience import PATIENCE

from megatron_ko.artifacts.checkpoints import (
    MANIFEST,
    Manifest,
    name_of,
    publish,
    record_file,
    steps_in,
    temporary_beside,
)
from megatron_ko.artifacts.pins import Pin, newest_pinned, remove_unless_pinned
from megatron_ko.errors import CheckpointError
from megatron_ko.train.retention import apply_retention

FORK = multiprocessing.get_context("fork")


def save(folder: Path, step: int) -> Path:
    """A small checkpoint."""
    temporary = temporary_beside(folder, step)
    (temporary / "model").mkdir()
    names = [f"model/{number}.distcp" for number in range(4)]
    for name in names:
        (temporary / name).write_bytes(os.urandom(4096))
    files = {name: record_file(temporary / name) for name in names}
    manifest = Manifest(
        step=step, samples=step, tokens=step, files=files, layout={}, state={}, metrics={}, config={},
        config_sha256="", tokenizer="", versions={}, created=time.time(),
    )  # fmt: skip
    return publish(temporary, manifest)


def save_for_ever(folder: Path, stop: Event) -> None:
    step = 1
    while not stop.is_set():
        step += 1
        save(folder, step)
        apply_retention(folder, keep=1)


def test_readers_are_never_left_without_files(tmp_path: Path) -> None:
    save(tmp_path, 1)
    stop = FORK.Event()
    writer = FORK.Process(target=save_for_ever, args=(tmp_path, stop))
    writer.start()
    try:
        seen = set()
        deadline = time.monotonic() + PATIENCE
        while len(seen) < 40 and time.monotonic() < deadline:
            found = newest_pinned(tmp_path)
            time.sleep(0.02)  # several saves
            assert all((found.directory / name).stat().st_size == 4096 for name in found.manifest.files)
            seen.add(found.manifest.step)
            del found
    finally:
        stop.set()
        writer.join(PATIENCE)
    assert len(seen) == 40 and writer.exitcode == 0
    save(tmp_path, 10**6)
    apply_retention(tmp_path, keep=1)
    assert steps_in(tmp_path) == [10**6], "what was pinned goes once nobody reads it"


def hold(directory: Path, ready: Event) -> None:
    pin = Pin(directory)
    ready.set()
    time.sleep(PATIENCE)
    pin.release()


def test_a_killed_reader_holds_nothing(tmp_path: Path) -> None:
    directory = save(tmp_path, 1)
    ready = FORK.Event()
    reader = FORK.Process(target=hold, args=(directory, ready))
    reader.start()
    assert ready.wait(PATIENCE)
    save(tmp_path, 2)
    assert apply_retention(tmp_path, keep=1) == [] and steps_in(tmp_path) == [2, 1]
    assert reader.pid is not None
    os.kill(reader.pid, signal.SIGKILL)
    reader.join(PATIENCE)
    assert apply_retention(tmp_path, keep=1) == [1] and steps_in(tmp_path) == [2]


def test_a_pin_travels_to_another_process(tmp_path: Path) -> None:
    directory = save(tmp_path, 1)
    pin = Pin(directory)
    other = pickle.loads(pickle.dumps(pin))
    pin.release()
    assert not remove_unless_pinned(directory)
    other.release()
    assert remove_unless_pinned(directory)
    with pytest.raises(FileNotFoundError):
        Pin(directory)


def test_without_a_manifest_nothing_is_pinned_and_all_can_go(tmp_path: Path) -> None:
    directory = save(tmp_path, 1)
    (directory / MANIFEST).unlink()
    with pytest.raises(CheckpointError, match=f"no checkpoint is valid(?s:.*){name_of(1)}"):
        newest_pinned(tmp_path)
    assert remove_unless_pinned(directory) and not directory.exists()
