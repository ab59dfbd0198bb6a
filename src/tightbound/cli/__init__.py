"""The command `tightbound`: `fit MODEL.py`, `check FIT MODEL.py`, `reproduce NAME`, `list`.

Exit codes: 0 the verdict is "pass" or "caution" (or every claim is met), 1 it is "fail", no usable
fit exists, or a claim is not met, 2 the command, MODEL.py or the data cannot be used. Heavy imports
stand inside the functions that need them, so that `--help` is quick.
"""

import contextlib
import dataclasses
import importlib
import json as jsonlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast, runtime_checkable

from ..results import MissingExtraError
from .errors import UsageError
from .model import blaming, importable, target_of
from .output import as_json, in_words, make_folder, plain, write
from .reproduction import Reproduced, claims_in_words, write_result

if TYPE_CHECKING:
    from ..fit import Fit
    from ..targets.base import AbstractTarget

_INTERRUPTED = 130  # 128 and the number of SIGINT, as shells count


@runtime_checkable
class _Experiments(Protocol):
    """What the module `tightbound.experiments` must have; it stands in a layer above."""

    OptionError: type[ValueError]

    def run(self, name: str, fast: bool = True, **options: object) -> Reproduced:
        """Run one of them again."""
        ...

    def pictures(self, result: Reproduced) -> dict[str, bytes]:
        """PNG files by name."""
        ...


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    try:
        import cyclopts
    except ImportError:
        print(MissingExtraError("cyclopts", "cli", "The command `tightbound`"), file=sys.stderr)
        return 2
    app = cyclopts.App(
        name="tightbound",
        help="Variational inference that says how far off it is.",
        version=_version,
        default_parameter=cyclopts.Parameter(negative=()),
        # A fit answers Ctrl-C with what it has; cyclopts would end the process
        suppress_keyboard_interrupt=False,
    )
    for command, name in (
        (fit, "fit"),
        (check, "check"),
        (reproduce, "reproduce"),
        (list_experiments, "list"),
    ):
        app.command(command, name=name)
    # Exit codes are ours to choose, and `main` must return to a caller (the tests) that goes on.
    try:
        return app(argv, exit_on_error=False, result_action="return_value") or 0
    except cyclopts.CycloptsError:
        return 2  # what was wrong is printed
    except UsageError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("Interrupted before there was a fit.", file=sys.stderr)
        return _INTERRUPTED


def fit(
    model: Path,
    /,
    *,
    data: Path | None = None,
    out: Path | None = None,
    seed: int = 0,
    tol: float = 0.02,
    seconds: float | None = None,
    json: bool = False,
) -> int:
    """Fit the model in MODEL.py; print the summary of its posterior, and how far off it is.

    MODEL.py defines `target` (such as tb.from_log_density makes), or a function `target(data)` that
    returns one, or a NumPyro `model`, which is called with the data as keyword arguments.

    Arguments:
        model: The Python file.
        data: A .json, .csv or .npz file of named numbers and arrays.
        out: A folder for report.html, fit.npz, summary.csv and summary.json; it is made where it
            does not exist.
        seed: The same seed gives the same numbers.
        tol: Accuracy of the means, in posterior standard deviations.
        seconds: Stop the search after this time, with what there is.
        json: Print one JSON object to stdout, and nothing else.
    """
    if not tol > 0 or not (seconds is None or seconds > 0):
        raise UsageError("--tol and --seconds must be positive.")
    if out is not None:
        make_folder(out)
    with _stdout_to_stderr(json), importable(model.parent):
        fitted = _fitted(target_of(model, data), model, seed=seed, tol=tol, seconds=seconds)
        shown = {"model": str(model), "seed": seed, "version": _version(), **as_json(fitted)}
        words = "" if json else in_words(fitted)
    print(jsonlib.dumps(shown, allow_nan=False) if json else words)
    if out is not None:
        with _stdout_to_stderr(json):
            write(out, fitted, shown, model.stem)
    return 1 if shown["verdict"] == "fail" else 0


def check(
    saved: Path,
    model: Path,
    /,
    *,
    data: Path | None = None,
    seed: int = 1,
    draws: int | None = None,
    json: bool = False,
) -> int:
    """Certify a fit anew: is what FIT says still so, for this model and these data?

    The draws and searches are the check's own.

    Arguments:
        saved: The fit.npz that `tightbound fit --out` or `fit.save` wrote.
        model: The Python file, as for `tightbound fit`.
        data: The data file, as for `tightbound fit`; other data than the fit's are what a check is
            for.
        seed: The same seed gives the same numbers.
        draws: Fresh draws to judge by, an even number; as many as for any certificate by default.
        json: Print one JSON object to stdout, and nothing else.
    """
    # Here and not above: the certificate's modules import JAX, which `--help` can do without.
    from ..certify.standards import EFFORT

    draws = EFFORT.draws if draws is None else draws
    if draws < EFFORT.least_asked:
        least = EFFORT.least_asked
        raise UsageError(f"--draws must be at least {least} to say anything, got {draws}.")
    with _stdout_to_stderr(json), importable(model.parent):
        fitted = _checked(saved, target_of(model, data), model, seed=seed, draws=draws)
        shown = {
            "model": str(model),
            "fit": str(saved),
            "seed": seed,
            "version": _version(),
            **as_json(fitted),
        }
        words = "" if json else fitted.certificate.explain()
    print(jsonlib.dumps(shown, allow_nan=False) if json else words)
    return 1 if shown["verdict"] == "fail" else 0


def reproduce(
    name: str,
    /,
    *,
    reference: bool = False,
    full: bool = False,
    data: Path | None = None,
    out: Path | None = None,
    json: bool = False,
) -> int:
    """Rerun one published table or figure, and compare it with what was published.

    Arguments:
        name: One of the names that `tightbound list` prints.
        reference: The setting between the fast and the full version, where the experiment has one.
        full: All of it, not the fast version.
        data: The folder of the experiment's data, where it takes some.
        out: A folder for the claims, the tables and the pictures; it is made where it does not
            exist.
        json: Print one JSON object to stdout, and nothing else.
    """
    experiments, known = _experiments()
    if name not in known:
        names = f"They are: {', '.join(known)}." if known else "There are none in this version."
        raise UsageError(
            f"No experiment is called {name!r}. {names} `tightbound list` describes them."
        )
    if reference and full:
        raise UsageError("--reference and --full exclude each other: pass one of them.")
    if out is not None:
        make_folder(out)
    # Passed only where they were given: an experiment that does not take one then says so.
    options = {"reference": True} if reference else {}
    with _stdout_to_stderr(json):
        try:
            result = experiments.run(
                name, fast=not full, **options, **({} if data is None else {"data": data})
            )
        except experiments.OptionError as error:
            raise UsageError(str(error)) from None
    shown = plain({"name": name, "claims": result.claims, "note": result.note})
    print(jsonlib.dumps(shown, allow_nan=False) if json else claims_in_words(result))
    if out is not None:
        with _stdout_to_stderr(json):
            write_result(out, result, shown, experiments.pictures)
    return 0 if result.ok else 1


def list_experiments() -> int:
    """List the published tables and figures that `tightbound reproduce` can rerun."""
    _, known = _experiments()
    width = max(map(len, known), default=0)
    for name, about in known.items():
        print(f"{name:<{width}}  {about}")
    if not known:
        print("There are no experiments in this version.")
    return 0


def _experiments() -> tuple[_Experiments, dict[str, str]]:
    """The module `tightbound.experiments`, and name -> one line of each that it has."""
    # By name: an import statement would run upwards, for the experiments import everything.
    experiments = importlib.import_module("tightbound.experiments")
    # A module has no type that says what is in it
    return cast(_Experiments, experiments), dict(getattr(experiments, "REGISTRY", {}))


def _stdout_to_stderr(only: bool) -> contextlib.AbstractContextManager:
    """With --json stdout is for the one object; what anybody else prints goes to stderr."""
    return contextlib.redirect_stdout(sys.stderr) if only else contextlib.nullcontext()


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("tightbound")
    except PackageNotFoundError:
        return "(not installed as a package)"


def _fitted(
    target: "AbstractTarget", model: Path, *, seed: int, tol: float, seconds: float | None
) -> "Fit":
    from ..account import Budget
    from ..fit import fit as run

    with blaming(model):  # what the log density raises when it is traced again
        return run(target, key=seed, tol=tol, budget=Budget(seconds=seconds), throw=False)


def _checked(saved: Path, target: "AbstractTarget", model: Path, *, seed: int, draws: int) -> "Fit":
    """The saved fit with a new certificate in the place of its own."""
    from ..certify.certificate import check as certify
    from ..fit import load

    try:
        fitted = load(saved, target)
    except (OSError, ValueError) as error:
        raise UsageError(f"{saved}: {error}") from None
    with blaming(model):
        return dataclasses.replace(fitted, checked=certify(fitted, key=seed, draws=draws))


__all__ = ["UsageError", "main"]
