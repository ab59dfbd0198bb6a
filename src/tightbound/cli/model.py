"""MODEL.py: run it, find its target, and report its errors as the lines of that file."""

import contextlib
import inspect
import sys
import traceback
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from ..results import FitError, MissingExtraError, PairingError, TargetError
from .data import read
from .errors import UsageError

if TYPE_CHECKING:
    from ..targets.base import AbstractTarget

_FRAMES = 4  # of MODEL.py that an error shows, the last ones: where it was raised
_THREE = (
    "It must define one of three: `target`, a tightbound target such as tb.from_log_density(...)"
    " makes; `target(data)`, a function of the data in --data that returns one; or `model`, a"
    " NumPyro function of the data by name."
)


@contextlib.contextmanager
def importable(folder: Path) -> Iterator[None]:
    """Let MODEL.py import its neighbours, as a script may; also later, within its functions."""
    # First, as for a script: a neighbour called like a library is meant to be found before it.
    place = str(folder.resolve())
    sys.path.insert(0, place)
    try:
        yield
    finally:
        sys.path.remove(place)


def target_of(model: Path, data: Path | None) -> "AbstractTarget":
    """The target that MODEL.py defines, with the data where it asks for them."""
    from ..targets import AbstractTarget

    names = _run(model)
    values = None if data is None else read(data)
    made = names.get("target")
    if isinstance(made, AbstractTarget):
        if data is not None:
            raise UsageError(
                f"{model} defines `target` as a finished target, which would leave --data {data}"
                " unused. Make it a function, target(data), or leave --data out."
            )
        return made
    if callable(made):
        returned = _call(made, "target", () if values is None else (values,), {}, model, data)
        if not isinstance(returned, AbstractTarget):
            raise UsageError(
                f"`target` in {model} returned a {type(returned).__name__}, not a tightbound"
                " target. Return what tb.from_log_density(...), tb.from_rows(...) or"
                " tb.from_numpyro(...) makes."
            )
        return returned
    if made is not None:
        raise UsageError(f"`target` in {model} is a {type(made).__name__}. {_THREE}")
    if callable(of_numpyro := names.get("model")):
        from ..targets import from_numpyro

        _check_call(of_numpyro, "model", (), values or {}, model, data)
        with blaming(model):
            return from_numpyro(of_numpyro, **(values or {}))
    raise UsageError(f"{model} defines neither `target` nor `model`. {_THREE}")


def _run(model: Path) -> dict[str, object]:
    """The names that MODEL.py defines."""
    try:
        source = model.read_bytes()
    except OSError as error:
        reason = f"cannot be read: {error.strerror}"
        raise UsageError(
            f"MODEL.py: {str(model)!r} {reason}. Pass the path of a Python file."
        ) from None
    module = types.ModuleType("tightbound_model")
    module.__file__ = str(model)
    sys.modules[module.__name__] = module  # dataclasses look there for the module of a class
    with blaming(model):
        exec(compile(source, str(model), "exec"), vars(module))
    return vars(module)


def _call(
    function: Callable[..., object],
    name: str,
    args: tuple[object, ...],
    named: dict[str, object],
    model: Path,
    data: Path | None,
) -> object:
    _check_call(function, name, args, named, model, data)
    with blaming(model):
        return function(*args, **named)


def _check_call(
    function: Callable[..., object],
    name: str,
    args: tuple[object, ...],
    named: dict[str, object],
    model: Path,
    data: Path | None,
) -> None:
    """Raise a UsageError where the function of the user does not take what there is."""
    # Asked before the call: a TypeError from the call itself may come from deep inside it.
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # a function written in C may not say what it takes
        return
    try:
        signature.bind(*args, **named)
    except TypeError as error:
        has = (
            "there is no --data FILE"
            if data is None
            else f"{data} has {', '.join(named) or 'the one argument'}"
        )
        raise UsageError(
            f"`{name}{signature}` in {model} does not fit its data: {error}; {has}."
        ) from None


@contextlib.contextmanager
def blaming(model: Path) -> Iterator[None]:
    """What the code in MODEL.py raises, as the lines of that file and the message.

    Our own frames say nothing to a user.
    """
    try:
        yield
    except (UsageError, FitError):
        raise
    except (Exception, SystemExit) as error:
        theirs = [
            frame
            for frame in traceback.extract_tb(error.__traceback__)
            if _is_theirs(frame.filename, model)
        ]
        ours = isinstance(error, (TargetError, PairingError, MissingExtraError))
        # An error without a line of theirs is a fault of ours, and shows all of its traceback.
        if not (theirs or ours or isinstance(error, (SyntaxError, SystemExit))):
            raise
        lines = ["".join(traceback.format_list(theirs[-_FRAMES:]))] if theirs else []
        lines += (
            [str(error)] if ours else ["".join(traceback.format_exception_only(error)).rstrip()]
        )
        raise UsageError(f"{model} cannot be fitted:\n" + "".join(lines)) from None


def _is_theirs(filename: str, model: Path) -> bool:
    """Whether a line of a traceback stands in MODEL.py or in a neighbour that it imports.

    And not in a library, which may be installed below the folder of MODEL.py.
    """
    place = Path(filename).resolve()
    library = place.is_relative_to(Path(__file__).parents[1]) or "site-packages" in place.parts
    return place.is_relative_to(model.parent.resolve()) and not library


__all__ = ["blaming", "importable", "target_of"]
