"""Progress output: a live panel on a terminal, a plain line every few seconds otherwise."""

import logging
import math
import sys

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table

from megatron_ko.metrics.schema import VALID
from megatron_ko.train.state import Record

_QUIET_S = 5.0  # seconds between plain lines, so that the log of a long run stays readable
_SMOOTHING = 0.9  # weight of the past in the smoothed pace that gives the remaining time


class Progress:
    """Turns records into short texts, and keeps the data for the remaining time.

    Args:
        total_steps: steps of the run.
        total_tokens: tokens that the run trains, over all ranks; None: that depends on the data.
    """

    def __init__(self, total_steps: int, total_tokens: int | None) -> None:
        self.total_steps, self.total_tokens = total_steps, total_tokens
        self._pace: float | None = None  # steps a second
        self.valid: str = "-"

    def fields(self, record: Record) -> dict[str, str]:
        """Name -> text of the values shown for a training step."""
        rate, tokens = _number(record["tokens_per_s"]), int(_number(record["tokens"]))
        pace = 1 / _number(record["step_time_s"])
        self._pace = pace if self._pace is None else _SMOOTHING * self._pace + (1 - _SMOOTHING) * pace
        left = max(0, self.total_steps - int(_number(record["step"]))) / self._pace
        whole = "" if self.total_tokens is None else f"/{short(self.total_tokens)}"
        fields = {
            "step": f"{record['step']}/{self.total_steps}",
            "loss": "skipped" if record["skipped"] else f"{_number(record['loss']):.4f}",
            "valid": self.valid,
            "lr": f"{_number(record['lr']):.2e}",
            "grad norm": "-" if record["grad_norm"] is None else f"{_number(record['grad_norm']):.3f}",
            "tokens": short(tokens) + whole,
            "tokens/s": f"{rate:,.0f}",
            "eta": clock(left),
            "peak": f"{_number(record['memory_peak']) / 2**30:.2f} GiB",
            "reserved": f"{_number(record['memory_reserved']) / 2**30:.2f} GiB",
        }
        fields["TFLOP/s/rank"] = f"{_number(record['tflops']):.3g}"
        if record["mfu"] is not None:
            fields["MFU"] = f"{100 * _number(record['mfu']):.1f} %"
        return fields

    def remember_eval(self, record: Record) -> None:
        """Show this validation loss from now on."""
        self.valid = f"{_number(record['valid_loss']):.4f}"

    def eval_line(self, record: Record) -> str:
        """One line for a validation."""
        bits = record["bits_per_byte"]
        return (
            f"valid at step {record['step']}: loss {_number(record['valid_loss']):.4f}, "
            + ("" if record["perplexity"] is None else f"perplexity {_number(record['perplexity']):.2f}, ")
            + ("" if record.get("accuracy") is None else f"accuracy {_number(record['accuracy']):.1%}, ")
            + ("" if bits is None else f"{_number(bits):.4f} bits/byte, ")
            + f"{record['samples']} sequences in {_number(record['eval_time_s']):.1f} s"
            + _by_source(record)
        )


class PlainConsole:
    """Lines on standard output, for logs and pipes.

    The first step, the last step and every skipped step are always printed; others if the newest line is ``_QUIET_S``
    old. The metric store has every step.
    """

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._printed_at = -math.inf
        self._waiting = ""

    def write_step(self, record: Record) -> None:
        """Print a step, or keep it until it is known whether it is the last one."""
        fields = self._progress.fields(record)
        self._waiting = "  ".join(f"{name} {fields[name]}" for name in _PLAIN)
        now = _number(record["time"])
        last = record["step"] == self._progress.total_steps
        # The output must not stop if the clock is set back.
        if last or record["skipped"] or not 0 <= now - self._printed_at < _QUIET_S:
            self._printed_at = now
            self._flush()

    def _flush(self) -> None:
        if self._waiting:
            print(self._waiting, flush=True)
        self._waiting = ""

    def write_eval(self, record: Record) -> None:
        """Print a validation, after the step that it belongs to."""
        self._progress.remember_eval(record)
        self._flush()
        print(self._progress.eval_line(record), flush=True)

    def close(self) -> None:
        """Print the last step of a run that stopped."""
        self._flush()


_PLAIN = ("step", "loss", "lr", "grad norm", "tokens", "tokens/s", "eta")


class LiveConsole:
    """A panel that is redrawn in place. Log messages scroll above it."""

    def __init__(self, progress: Progress, console: Console) -> None:
        self._progress = progress
        self._shown: tuple[dict[str, str], int] = {}, 0
        self._live = Live(console=console, refresh_per_second=4)
        self._live.start()
        self._redirect_logs()

    def write_step(self, record: Record) -> None:
        """Redraw the panel."""
        self._draw(self._progress.fields(record), int(_number(record["step"])))

    def _draw(self, fields: dict[str, str], step: int) -> None:
        self._shown = fields, step
        grid = Table.grid(padding=(0, 3))
        names = list(fields)
        for start in range(0, len(names), 4):
            row = [f"[dim]{name}[/dim] [bold]{fields[name]}[/bold]" for name in names[start : start + 4]]
            grid.add_row(*row)
        bar = ProgressBar(total=self._progress.total_steps, completed=step)
        self._live.update(Panel(Group(grid, bar), title="megatron-ko train", border_style="cyan"))

    def write_eval(self, record: Record) -> None:
        """Print the validation above the panel and keep its loss in it."""
        self._progress.remember_eval(record)
        self._live.console.print(self._progress.eval_line(record))
        fields, step = self._shown
        self._draw({**fields, "valid": self._progress.valid}, step)

    def close(self) -> None:
        """Leave the last panel on the screen and give the terminal back."""
        self._live.stop()
        self._redirect_logs()

    @staticmethod
    def _redirect_logs() -> None:
        # Live replaces sys.stderr while it runs, but handlers keep the stream that they were created with.
        for handler in logging.getLogger("megatron_ko").handlers:
            if isinstance(handler, logging.StreamHandler):
                handler.setStream(sys.stderr)


def make_console(total_steps: int, total_tokens: int | None) -> PlainConsole | LiveConsole:
    """The live panel if standard output is a terminal, else plain lines."""
    progress, console = Progress(total_steps, total_tokens), Console()
    return LiveConsole(progress, console) if console.is_terminal else PlainConsole(progress)


def short(count: float) -> str:
    """A count in short form: 1234567 -> ``1.23M``."""
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= size:
            return f"{count / size:.3g}{unit}"
    return f"{count:g}"


def clock(seconds: float) -> str:
    """A duration: ``1:02:03``, with days if there are any."""
    whole = round(seconds)
    days, rest = divmod(whole, 86400)
    text = f"{rest // 3600}:{rest // 60 % 60:02}:{rest % 60:02}"
    return f"{days} d {text}" if days else text


def _by_source(record: Record) -> str:
    losses = {
        name.removeprefix(VALID.by_source): loss for name, loss in record.items() if name.startswith(VALID.by_source)
    }
    told = (f"{name} {'-' if loss is None else f'{_number(loss):.4f}'}" for name, loss in losses.items())
    return f" ({', '.join(told)})" if losses else ""


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else float("nan")
