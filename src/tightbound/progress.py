"""A progress display for long runs: rich in a terminal, nothing elsewhere."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

_PATIENCE = 2.0  # seconds before a run counts as long


@contextlib.contextmanager
def display(progress: bool | None, title: str, max_steps: int | None) -> Iterator[Callable[[int, float, str], None] | None]:
    """A callback `(steps, loss, note)` that shows where a run is, or None where nothing is to be shown.

    `progress=None` shows it in a terminal only, and only once a run has taken two seconds.
    """
    if progress is False or (progress is None and not sys.stderr.isatty()):
        yield None
        return
    try:
        from rich.console import Console
        from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
    except ImportError:
        yield None
        return
    bar = Progress(
        SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn(), console=Console(stderr=True), transient=True
    )
    task = bar.add_task(title, total=max_steps)
    begun, started = time.perf_counter(), False

    def show(steps: int, loss: float, note: str) -> None:
        nonlocal started
        if not started and (progress or time.perf_counter() - begun > _PATIENCE):
            bar.start()
            started = True
        bar.update(task, completed=steps, description=f"{title}: step {steps}, loss {loss:.4g}, {note}")

    try:
        yield show
    finally:
        if started:
            bar.stop()
