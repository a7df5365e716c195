"""How far a data verb is, and that nothing is lost when it stops."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import typer


@contextmanager
def kept(folder: Path) -> Iterator[None]:
    """After an error or Ctrl-C, say that the parts in ``folder`` or in its folders are not lost."""
    try:
        yield
    except BaseException:
        if any(folder.glob("part-*")) or any(folder.glob("*/part-*")):
            typer.echo(f"megatron-ko: what is done is kept in {folder}; the same command goes on from there", err=True)
        raise


@contextmanager
def bar_over_bytes(title: str, inputs: tuple[Path, ...]) -> Iterator[Callable[[int], None]]:
    """A bar over the bytes of the inputs, on a terminal; silence elsewhere."""
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

    total = sum(path.stat().st_size for path in inputs if path.is_file())
    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(title, total=total or None)
        yield lambda read: bar.update(task, completed=read)


@contextmanager
def bars_of_passes() -> Iterator[Callable[[str, float], None]]:
    """A bar for each pass, on a terminal; silence elsewhere."""
    if not sys.stderr.isatty():
        yield lambda *_: None
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
