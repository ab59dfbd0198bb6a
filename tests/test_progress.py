"""The display appears on long runs in a terminal, and nowhere else."""

import contextlib
import io
import sys
import time

import pytest

import tightbound as tb
from tightbound import progress
from tightbound.progress import display
from tightbound.results import MissingExtraError


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture(autouse=True)
def a_capable_terminal(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")


def without_rich(monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "rich"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "rich", None)


def shown(progress, wait=0.0, title="Solver", max_steps=5000, on=Terminal):
    """What a run of one block of steps prints.

    Pytest replaces stderr after its fixtures, so it is redirected here.
    """
    with contextlib.redirect_stderr(on()) as stderr, display(progress, title, max_steps) as show:
        if show is not None:
            show(1200, -3.25, "40 [bold] gradients")
            time.sleep(wait)
    return stderr.getvalue()


def test_nothing_is_shown_when_it_is_off():
    assert shown(False) == ""


def test_nothing_is_shown_outside_a_terminal():
    assert shown(None, on=io.StringIO) == ""


def test_a_short_run_shows_nothing():
    assert shown(None) == ""


def test_a_long_run_shows_where_it_is(monkeypatch):
    monkeypatch.setattr(progress, "PATIENCE", 0.05)
    assert "Solver: step 1,200 of 5,000, loss -3.25, 40 [bold] gradients" in shown(None, wait=0.5)


def test_a_long_compilation_shows_something_too(monkeypatch):
    monkeypatch.setattr(progress, "PATIENCE", 0.05)
    with contextlib.redirect_stderr(Terminal()) as stderr, display(None, "Solver", None):
        time.sleep(0.5)  # no step is done yet
    assert "Solver" in stderr.getvalue()


def test_it_shows_at_once_when_asked_to():
    assert "Solver: step 1,200" in shown(True)


def test_names_are_not_markup():
    assert "[red]Solver[/nonsense]: step 1,200, loss -3.25, 40 [bold]" in shown(
        True, title="[red]Solver[/nonsense]", max_steps=None
    )


def test_an_interruption_gives_the_cursor_back():
    with (
        contextlib.redirect_stderr(Terminal()) as stderr,
        pytest.raises(KeyboardInterrupt),
        display(True, "Solver", None),
    ):
        raise KeyboardInterrupt
    assert stderr.getvalue().count("\x1b[?25l") == stderr.getvalue().count("\x1b[?25h") == 1


def test_without_rich_nothing_is_shown_unless_asked_for(monkeypatch):
    without_rich(monkeypatch)
    assert shown(None) == ""
    with pytest.raises(MissingExtraError, match=r"needs `rich`.*tightbound\[progress\]"):
        shown(True)


def test_fit_shows_it():
    target = tb.from_log_density(lambda p: -0.5 * p["x"] ** 2, {"x": 0.0})
    with contextlib.redirect_stderr(Terminal()) as stderr:
        tb.fit(target, progress=True)
    assert "gradients" in stderr.getvalue()
