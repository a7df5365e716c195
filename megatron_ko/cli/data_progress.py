"""Progress of a data command, and the message when it is stopped."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from threading import Event, Thread
from time import monotonic

import typer

_LINE_SECONDS = 60.0


@contextmanager
def say_how_to_resume(folder: Path) -> Iterator[None]:
    """After an error or Ctrl-C, say where finished work is kept and that the same command continues from there."""
    try:
        yield
    except BaseException as error:
        remedy = getattr(error, "remedy", None) or ""
        begun = any(folder.glob("part-*")) or any(folder.glob("*/part-*"))
        if begun and "--restart" not in remedy:
            typer.echo(f"megatron-ko: finished work is kept in {folder}; run the same command to continue", err=True)
        raise


@contextmanager
def bar_over_bytes(title: str, inputs: tuple[Path, ...], ranks: int = 1) -> Iterator[Callable[[int], None]]:
    """A progress bar over the bytes of the inputs (or this rank's share) on a terminal; else one line per minute."""
    total = sum(path.stat().st_size for path in inputs if path.is_file()) // ranks
    if not sys.stderr.isatty():
        of = f" of {total / 1e6:,.1f}" if total else ""
        with _told_in_lines(f"{title}: 0.0{of} MB") as tell:
            yield lambda read: tell(f"{title}: {read / 1e6:,.1f}{of} MB")
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(TextColumn("{task.description}"), *columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(title, total=total or None)
        yield lambda read: bar.update(task, completed=read)


@contextmanager
def bars_of_passes() -> Iterator[Callable[[str, float], None]]:
    """A progress bar for each pass on a terminal; otherwise one line per minute."""
    if not sys.stderr.isatty():
        with _told_in_lines("reading: 0%") as tell:
            yield lambda name, share: tell(f"{name}: {share:.0%}")
        return
    from rich.console import Console
    from rich.progress import Progress, TaskID

    tasks: dict[str, TaskID] = {}
    with Progress(console=Console(stderr=True)) as bar:

        def show(name: str, share: float) -> None:
            if name not in tasks:
                tasks[name] = bar.add_task(name, total=1.0)
            bar.update(tasks[name], completed=share)

        yield show


@contextmanager
def _told_in_lines(first: str) -> Iterator[Callable[[str], None]]:
    """A function that is told where the work is. It prints a line a minute, also while nothing gets done."""
    start, latest, ended = monotonic(), first, Event()

    def tell(line: str) -> None:
        nonlocal latest
        latest = line

    def print_lines() -> None:
        while not ended.wait(_LINE_SECONDS):
            typer.echo(f"{latest}, after {timedelta(seconds=int(monotonic() - start))}", err=True)

    # A thread: a chunk of slow stages takes longer than a minute.
    printer = Thread(target=print_lines, name="progress", daemon=True)
    printer.start()
    try:
        yield tell
    finally:
        ended.set()
        printer.join()


def speed(size: int, seconds: float) -> str:
    """Bytes a second, in a unit that leaves something to read."""
    rate = size / max(seconds, 1e-9)
    return f"{rate / 1e6:.1f} MB/s" if rate >= 1e5 else f"{rate / 1e3:.1f} kB/s"
