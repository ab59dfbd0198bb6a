"""The clutter problem from 20 to a million points: cost of an iteration, and accuracy.

GAA is the analytic gradient of Popov 2024 (arXiv 2404.10550). Every method here looks at each point
once in an iteration, so the cost is linear in their number.
"""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from .._numerics import host_algebra, x64
from ..estimators.gauss_hermite import GaussHermite
from ..families.gaussian import Gaussian
from ..solvers.ep import EP
from ..starts.annealed import advanced, anneal, first_state, natural_update, paper_update
from ..targets.clutter import Clutter
from .clutter_methods import default_rung, draw, gaussian_of, search
from .result import Claim, Result, Table, agrees, below, number, numbers

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SOURCE = "linear by construction"
REFERENCE = "medians over other data sets, by separate implementations of the methods"
SIZES = (20, 100, 1_000, 10_000, 100_000, 1_000_000)
LINEAR_FROM = 10_000  # below it the cost of a call to NumPy shows
# Data sets compared with the exact posterior: fast, full
SETS = {100: (20, 200), 1_000: (20, 40), 10_000: (5, 8)}
# Median KL(q || p) by n.
KL = {
    100: {"best": 5.49e-5, "EP": 5.52e-5, "GAA": 1.48e-4},
    1_000: {"best": 5.7e-7, "EP": 5.7e-7, "GAA": 1.7e-6},
    10_000: {"best": 3.9e-8, "EP": 3.9e-8, "GAA": 5.0e-8},
}


def run(fast: bool = True) -> Result:
    """Seconds per iteration by n for the closed-form loops, a quadrature step and an EP sweep.

    KL against the grid.

    Arguments:
        fast: fewer repetitions and data sets; every n is there.
    """
    with x64(), host_algebra():
        costs = [_cost(n, 3 if fast else 15) for n in SIZES]
        accuracy = [_accuracy(n, sets[0 if fast else 1]) for n, sets in SETS.items()]
    claims = [_slope(costs, name) for name in ("GAA", "natural GAA", "EP sweep")]
    claims += [claim for row in accuracy for claim in _of_accuracy(row)]
    return Result("clutter-scaling", claims, {"cost": costs, "accuracy": accuracy})


def _of_accuracy(row: dict[str, int | float]) -> list[Claim]:
    """The claims about one number of points."""
    what = f"n = {row['n']:,}, {row['sets']} data sets"
    best, ep, gaa = (row[f"{name}, median KL"] for name in ("default", "EP", "GAA"))
    known = KL[int(row["n"])]
    ratio = known["best"] / known["EP"]
    mine = "median KL of the default's Gaussian"
    # The ratio is steadier than the medians: both come from the same data sets.
    return [
        agrees(f"{mine}, {what}", REFERENCE, known["best"], best, 0.6),
        agrees(f"{mine} over EP's, {what}", REFERENCE, ratio, best / ep, 0.1),
        below(f"{mine} over the analytic gradient's, {what}", REFERENCE, 1.0, best / gaa),
    ]


def _cost(n: int, repeats: int) -> dict[str, int | float]:
    """Seconds of one iteration of each method at n points."""
    target = Clutter(draw(np.random.default_rng(n), n))
    k, q, ep = target.kernels(), anneal(target), EP(parallel=True)
    loop, quadrature = first_state(k, 0.02), GaussHermite(5)
    nodes = quadrature.prepare(target, q, None)
    sweep = ep.init(target, q, None, 0, 0.02)
    scratch = np.empty(n)
    # The exponentials are for scale: the closed form takes two for each point.
    jobs: dict[str, Callable[[], object]] = {
        "GAA": lambda: advanced(loop, paper_update),
        "natural GAA": lambda: advanced(loop, natural_update),
        "GH5": lambda: quadrature.moments(target, np.asarray(q.mean), np.asarray(q.root), nodes),
        "EP sweep": lambda: ep.step(target, q, None, sweep, 0),
        "2 NumPy exponentials": lambda: (
            np.exp(target.x[:, 0], out=scratch),
            np.exp(target.x[:, 0], out=scratch),
        ),
    }
    return {
        "n": n,
        **{name: _least(job, max(repeats, min(200, 20_000 // n))) for name, job in jobs.items()},
    }


def _least(job: Callable[[], object], repeats: int) -> float:
    """The shortest of some runs: what else the machine does only adds to a time."""
    job()  # caches are filled, and what must compile compiles
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        job()
        times.append(time.perf_counter() - began)
    return min(times)


def _slope(costs: Table, name: str) -> Claim:
    rows = [row for row in costs if number(row, "n") >= LINEAR_FROM]
    slope = np.polyfit(np.log(numbers(rows, "n")), np.log(numbers(rows, name)), 1)[0]
    what = (
        f"exponent of n in the seconds of one iteration of {name}, n = {LINEAR_FROM:,} to"
        f" {SIZES[-1]:,}"
    )
    return agrees(what, SOURCE, 1.0, float(slope), 0.2)


def _accuracy(n: int, sets: int) -> dict[str, int | float]:
    """Medians over data sets of n points."""
    rng = np.random.default_rng(1000 + n)
    kls: dict[str, list[float]] = {"default": [], "EP": [], "GAA": []}
    for _ in range(sets):
        target = Clutter(draw(rng, n))
        exact = target.exact()
        kls["default"].append(exact.kl(gaussian_of(default_rung(target))))
        propagated = search(target, EP(parallel=True), Gaussian.full(1))
        kls["EP"].append(exact.kl(gaussian_of(propagated)))
        kls["GAA"].append(exact.kl(anneal(target)))
    return {
        "n": n,
        "sets": sets,
        **{f"{name}, median KL": float(np.median(found)) for name, found in kls.items()},
    }


def figures(result: Result) -> "dict[str, Figure]":
    """Seconds per iteration and KL by n."""
    from .drawing import panels

    cost, accuracy = result.tables["cost"], result.tables["accuracy"]
    medians = {name: f"{name}, median KL" for name in ("default", "EP", "GAA")}
    with panels(1, 2, width=9.5, height=3.4) as (figure, axes):
        left, right = axes[0]
        _lines(left, cost, {name: name for name in cost[0] if name != "n"})
        left.set(ylabel="seconds per iteration")
        _lines(right, accuracy, medians)
        right.set(ylabel="median KL(q || p), nats")
    return {"cost-and-accuracy": figure}


def _lines(axes: "Axes", rows: Table, columns: dict[str, str]) -> None:
    """Columns against n; label -> column."""
    from .drawing import COLOURS

    for colour, (label, column) in zip(COLOURS, columns.items(), strict=False):
        axes.plot(numbers(rows, "n"), numbers(rows, column), ".-", color=colour, label=label)
    axes.set(xscale="log", yscale="log", xlabel="points")
    axes.legend(fontsize=8)


__all__ = ["figures", "run"]
