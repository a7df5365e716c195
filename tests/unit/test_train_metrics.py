"""The metric files: exact numbers, each step once, readable progress."""

import json
import math
import re
from pathlib import Path

import pytest

from megatron_ko.errors import CheckpointError, ConfigError
from megatron_ko.train.console import PlainConsole, Progress, clock, short
from megatron_ko.train.sinks import JsonLines, TensorBoardSink, WandbSink
from megatron_ko.train.state import Record, StepResult, TrainState

STEP: Record = {
    "step": 3, "loss": 2.5, "loss_hex": (2.5).hex(), "grad_norm": 1.25, "lr": 3e-4, "tokens": 3000, "samples": 12,
    "step_time_s": 0.5, "tokens_per_s": 2000.0, "loss_scale": 1.0, "skipped": False, "memory_peak": 2**30,
    "memory_reserved": 2**31, "tflops": 0.5, "mfu": None, "time": 1.0,
}  # fmt: skip
EVAL: Record = {
    "step": 3, "tokens": 3000, "valid_loss": 2.0, "valid_loss_hex": (2.0).hex(), "perplexity": math.exp(2.0),
    "bits_per_byte": 1.5, "samples": 8, "valid_tokens": 512, "eval_time_s": 0.25, "time": 1.0,
}  # fmt: skip


def test_lines_keep_every_digit_and_survive_without_close(tmp_path: Path) -> None:
    lines = JsonLines(tmp_path / "metrics" / "train.jsonl")
    lines.write({"loss": 0.1 + 0.2, "loss_hex": (0.1 + 0.2).hex(), "bad": math.nan, "skipped": True})
    read = json.loads((tmp_path / "metrics" / "train.jsonl").read_text())
    assert read == {"loss": 0.1 + 0.2, "loss_hex": "0x1.3333333333334p-2", "bad": None, "skipped": True}
    assert float.fromhex(read["loss_hex"]) == 0.1 + 0.2
    assert lines.position == (tmp_path / "metrics" / "train.jsonl").stat().st_size
    lines.close()


def test_a_line_that_does_not_fit_names_its_file(tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no device here that is always full")
    (tmp_path / "train.jsonl").symlink_to("/dev/full")
    lines = JsonLines(tmp_path / "train.jsonl")
    with pytest.raises(OSError, match=r"train\.jsonl"):
        lines.write({"step": 1})
    with pytest.raises(OSError, match=r"train\.jsonl"):  # this is what ends the run, so it has to say it too
        lines.close()


def test_rewind_moves_what_a_checkpoint_had_not_seen(tmp_path: Path) -> None:
    from megatron_ko.train.metrics import rewind

    train = tmp_path / "train.jsonl"
    train.write_bytes(b'{"step":1}\n{"step":2}\n{"step":3}\n{"st')
    (tmp_path / "valid.jsonl").write_bytes(b'{"step":2}\n')
    assert rewind(tmp_path, {"train.jsonl": 11, "valid.jsonl": 11}) == 3
    assert train.read_bytes() == b'{"step":1}\n'
    assert (tmp_path / "valid.jsonl").read_bytes() == b'{"step":2}\n'
    assert (tmp_path / "superseded.jsonl").read_bytes() == b'{"step":2}\n{"step":3}\n{"st\n'
    assert rewind(tmp_path, {"train.jsonl": 11, "valid.jsonl": 11}) == 0
    assert rewind(tmp_path, {}) == 2  # a start from the beginning knows of no line
    assert train.read_bytes() == b""
    assert rewind(tmp_path / "absent", {}) == 0


def test_lost_records_are_told_and_spoil_no_later_one(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    from megatron_ko.train.metrics import rewind

    train = tmp_path / "train.jsonl"
    train.write_bytes(b'{"step":1}\n{"st')
    with caplog.at_level("WARNING", "megatron_ko"):
        assert rewind(tmp_path, {"train.jsonl": 22, "valid.jsonl": 11}) == 0
    assert train.read_bytes() == b'{"step":1}\n{"st\n'
    assert f"{train} has 15 bytes" in caplog.text and f"{tmp_path / 'valid.jsonl'} has 0 bytes" in caplog.text


def test_plain_console_tells_a_step_in_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    console = PlainConsole(Progress(total_steps=10, total_tokens=10000))
    console.write_step(STEP)
    console.write_eval(EVAL)
    console.write_step({**STEP, "skipped": True, "grad_norm": None})
    first, second, third = capsys.readouterr().out.splitlines()
    assert first == ("step 3/10  loss 2.5000  lr 3.00e-04  grad norm 1.250  tokens 3k/10k  tokens/s 2,000  eta 0:00:04")
    assert second == "valid at step 3: loss 2.0000, perplexity 7.39, 1.5000 bits/byte, 8 sequences in 0.2 s"
    assert "loss skipped" in third and "grad norm -" in third


def test_plain_console_is_quiet_between_lines(capsys: pytest.CaptureFixture[str]) -> None:
    console = PlainConsole(Progress(total_steps=100, total_tokens=100000))

    def told(step: int, time: float, **changed: bool) -> list[str]:
        console.write_step({**STEP, "step": step, "time": time, **changed})
        return capsys.readouterr().out.splitlines()

    assert told(1, 1000.0) and not told(2, 1001.0) and not told(3, 1004.9)
    assert told(4, 1005.0) and not told(5, 1006.0)
    assert told(6, 1006.5, skipped=True) and not told(7, 1007.0)
    console.write_eval(EVAL)  # a validation is told, with its step
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["step", "valid"]
    assert told(8, 900.0)  # the clock was set back
    assert not told(9, 901.0)
    console.close()  # a run that was stopped at step 9
    assert capsys.readouterr().out.startswith("step 9/100")
    console.close()
    assert not capsys.readouterr().out
    assert told(99, 1020.0) and told(100, 1020.1)


def test_live_console_draws_and_gives_the_terminal_back() -> None:
    import io
    import logging
    import sys

    from rich.console import Console

    from megatron_ko import log
    from megatron_ko.train.console import LiveConsole

    log.configure(0)
    stream = io.StringIO()
    live = LiveConsole(Progress(10, 10000), Console(file=stream, force_terminal=True, width=120))
    live.write_step({**STEP, "mfu": 0.41})
    live.write_eval(EVAL)
    log.get_logger("x").info("a message")
    live.close()
    text = stream.getvalue()
    assert "valid 2.0000" in re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text)  # the panel shows it at once
    assert "3/10" in text and "41.0 %" in text and "a message" in text and "bits/byte" in text
    handler = logging.getLogger("megatron_ko").handlers[0]
    assert isinstance(handler, logging.StreamHandler) and handler.stream is sys.stderr


def test_numbers_for_people() -> None:
    assert [short(n) for n in (0, 999, 1234, 5.5e6, 2e9, 3.21e12)] == ["0", "999", "1.23k", "5.5M", "2B", "3.21T"]
    assert clock(3723.4) == "1:02:03" and clock(90061) == "1 d 1:01:01"


def test_tensorboard_events_are_purged_after_a_resume(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for first, steps in ((0, (1, 2, 3)), (2, (3,))):
        sink = TensorBoardSink(tmp_path, first)
        for step in steps:
            sink.write_step({**STEP, "step": step, "loss": float(step + first)})
        sink.write_eval(EVAL)
        sink.close()
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [(event.step, event.value) for event in events.Scalars("train/loss")] == [(1, 1.0), (2, 2.0), (3, 5.0)]
    assert "valid/valid_loss" in events.Tags()["scalars"] and "train/loss_hex" not in events.Tags()["scalars"]


def test_missing_wandb_says_what_to_install(tmp_path: Path) -> None:
    try:
        import wandb  # noqa: F401
    except ImportError:
        with pytest.raises(ConfigError, match="pip install"):
            WandbSink("project", "name", {}, tmp_path)
    else:
        pytest.skip("wandb is installed")


def test_state_counts_and_round_trips() -> None:
    state = TrainState()
    for skipped in (False, True, True, False, True):
        result = StepResult(1.0, 1.0, 0.1, 1.0, skipped, trained_tokens=256)
        state.advance(result, samples=4, by_source={"wiki": 256}, position={"samples": state.samples + 4})
    assert (state.step, state.samples, state.tokens, state.skipped, state.consecutive_skips) == (5, 20, 1280, 3, 1)
    assert state.source_tokens == {"wiki": 1280} and state.position == {"samples": 20}
    assert TrainState.from_dict(state.to_dict()) == state
    assert state.done(5) and not state.done(6)
    with pytest.raises(CheckpointError):
        TrainState.from_dict({"step": 1, "colour": 2})
