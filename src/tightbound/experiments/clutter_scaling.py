"""The clutter problem from 20 to a million points.

Cost of an iteration, and accuracy (clutter spec, 5.6 (f) and 5.1).
"""

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from .._numerics import host_algebra, x64
from ..estimators.gauss_hermite import GaussHermite
from ..families.gaussian import Gaussian
from ..solvers.annealed import advanced, anneal, first_state, natural_update, paper_update
from ..solvers.ep import EP
from ..targets.clutter import Clutter
from .clutter_methods import default_rung, draw, search
from .result import Result, agrees, below

SOURCE = "clutter spec, section 5.6 (f)"
KL_SOURCE = "clutter spec, section 5.1"
SIZES = (20, 100, 1_000, 10_000, 100_000, 1_000_000)
LINEAR_FROM = 10_000  # below it the cost of a call to NumPy shows
MOST_FOR_GRID = 10_000
# data sets compared with the exact posterior: fast, full
SETS = {100: (20, 200), 1_000: (20, 40), 10_000: (5, 8)}
# Clutter spec, section 5.1: median KL(q || p) by n.
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
    for row in accuracy:
        what = f"n = {row['n']:,}, {row['sets']} data sets"
        best, ep, gaa = (row[f"{name}, median KL"] for name in ("default", "EP", "GAA"))
        published = KL[row["n"]]
        claims.append(
            agrees(
                f"median KL of the default's Gaussian, {what}",
                KL_SOURCE,
                published["best"],
                best,
                0.6,
            )
        )
        ratio = published["best"] / published["EP"]
        claims.append(
            agrees(
                f"median KL of the default's Gaussian over EP's, {what}",
                KL_SOURCE,
                ratio,
                best / ep,
                0.1,
            )
        )
        claims.append(
            below(
                f"median KL of the default's Gaussian over the analytic gradient's, {what}",
                KL_SOURCE,
                1.0,
                best / gaa,
            )
        )
    return Result("clutter-scaling", claims, {"cost": costs, "accuracy": accuracy})


def _cost(n: int, repeats: int) -> dict[str, Any]:
    target = Clutter(draw(np.random.default_rng(n), n))
    k, q, ep = target.kernels(), anneal(target), EP(parallel=True)
    loop, quadrature = first_state(k, 0.02), GaussHermite(5)
    nodes = quadrature.prepare(target, q, None)
    sweep = ep.init(target, q, None, 0, 0.02)
    scratch = np.empty(n)
    jobs: dict[str, Callable[[], Any]] = {
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


def _least(job: Callable[[], Any], repeats: int) -> float:
    job()
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        job()
        times.append(time.perf_counter() - began)
    return min(times)


def _slope(costs: list[dict[str, Any]], name: str) -> dict[str, Any]:
    rows = [row for row in costs if row["n"] >= LINEAR_FROM]
    slope = np.polyfit(np.log([row["n"] for row in rows]), np.log([row[name] for row in rows]), 1)[
        0
    ]
    what = (
        f"exponent of n in the seconds of one iteration of {name}, n = {LINEAR_FROM:,} to"
        f" {SIZES[-1]:,}"
    )
    return agrees(what, SOURCE, 1.0, float(slope), 0.2)


def _accuracy(n: int, sets: int) -> dict[str, Any]:
    rng, kls = np.random.default_rng(1000 + n), {"default": [], "EP": [], "GAA": []}
    for _ in range(sets):
        target = Clutter(draw(rng, n))
        exact = target.exact()
        kls["default"].append(exact.kl(default_rung(target).q))
        kls["EP"].append(exact.kl(search(target, EP(parallel=True), Gaussian.full(1)).q))
        kls["GAA"].append(exact.kl(anneal(target)))
    return {
        "n": n,
        "sets": sets,
        **{f"{name}, median KL": float(np.median(found)) for name, found in kls.items()},
    }


def figures(result: Result) -> dict[str, Any]:
    """Seconds per iteration and KL by n."""
    from .drawing import COLOURS, panels

    with panels(1, 2, width=9.5, height=3.4) as (figure, axes):
        names = [name for name in result.tables["cost"][0] if name != "n"]
        for colour, name in zip(COLOURS, names, strict=False):
            rows = result.tables["cost"]
            axes[0, 0].plot(
                [row["n"] for row in rows],
                [row[name] for row in rows],
                ".-",
                color=colour,
                label=name,
            )
        axes[0, 0].set(xscale="log", yscale="log", xlabel="points", ylabel="seconds per iteration")
        axes[0, 0].legend(fontsize=8)
        for colour, name in zip(COLOURS, ("default", "EP", "GAA"), strict=False):
            rows = result.tables["accuracy"]
            values = [row[f"{name}, median KL"] for row in rows]
            axes[0, 1].plot([row["n"] for row in rows], values, ".-", color=colour, label=name)
        axes[0, 1].set(
            xscale="log", yscale="log", xlabel="points", ylabel="median KL(q || p), nats"
        )
        axes[0, 1].legend(fontsize=8)
    return {"cost-and-accuracy": figure}


__all__ = ["figures", "run"]
