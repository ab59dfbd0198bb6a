"""A progress display for long runs: rich in a terminal, nothing elsewhere."""

import contextlib
import sys
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from .results import MissingExtraError

if TYPE_CHECKING:
    import rich.progress  # an extra, and a tenth of a second

PATIENCE = 2.0
"""Seconds before a run counts as long."""


@contextlib.contextmanager
def display(
    progress: bool | None, title: str, max_steps: int | None
) -> Iterator[Callable[[int, float, str], None] | None]:
    """A callback `(steps, loss, note)` that shows where a run is; None where nothing is shown.

    What is shown goes to stderr, below anything that the user's code prints meanwhile, and is wiped
    away at the end.

    Arguments:
        progress: True shows it from the start, False never; None in a terminal only (where rich is
            installed), once the run has taken two seconds: also while the first block of steps
            still compiles.
        title: what runs, such as the name of the solver.
        max_steps: the most steps it will take, where there is a limit.

    Raises:
        MissingExtraError: `progress` is True and rich is not installed.
    """
    if progress is False or (progress is None and not sys.stderr.isatty()):
        yield None
        return
    bar = _bar()
    if bar is None:
        if progress:
            raise MissingExtraError("rich", "progress", "progress=True")
        yield None
        return
    limit = "" if max_steps is None else f" of {max_steps:,}"
    task = bar.add_task(title)

    def show(steps: int, loss: float, note: str) -> None:
        bar.update(task, description=f"{title}: step {steps:,}{limit}, loss {loss:.6g}, {note}")

    with _after(0.0 if progress else PATIENCE, bar):
        yield show


def _bar() -> "rich.progress.Progress | None":
    """A line with a spinner, what runs and the time; None where rich is not installed."""
    try:
        from rich.console import Console
        from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
    except ImportError:
        return None
    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn())
    return Progress(*columns, console=Console(stderr=True), transient=True)


@contextlib.contextmanager
def _after(seconds: float, bar: "rich.progress.Progress") -> Iterator[None]:
    """Start the display after some seconds, unless the block is left before.

    Stop it when the block is left.
    """
    # A timer's thread, since the block may be inside a compilation that calls nothing of ours. The
    # lock keeps it from starting the display just after the block was left.
    lock, over, started = threading.Lock(), False, False

    def start() -> None:
        nonlocal started
        with lock:
            if not over:
                bar.start()
                started = True

    timer = threading.Timer(seconds, start)
    timer.daemon = True  # a run that dies takes the timer with it
    if seconds > 0:
        timer.start()
    else:
        start()
    try:
        yield
    finally:
        timer.cancel()
        with lock:
            over = True
        if started:
            bar.stop()


__all__ = ["PATIENCE", "display"]
