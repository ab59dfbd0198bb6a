"""The clutter problem in the plane and beyond: KL against a grid, ELBO deficits above it.

The problem of Popov 2024 (arXiv 2404.10550), who treats one dimension, with inliers around
(2, 0, ..., 0).
"""

from typing import TYPE_CHECKING

import numpy as np

from .._numerics import host_algebra, x64
from ..targets.clutter import Clutter
from .clutter_methods import draw_vectors, timed
from .result import Cell, Claim, Result, Table, agrees, below, number, numbers

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

REFERENCE = "medians over 15 other data sets, by separate implementations of the methods"
OWN = "a bound of ours; the paper has one dimension only"
SETS = {10: (6, 30), 20: (6, 30), 100: (4, 15)}  # n -> data sets: fast, full
NAMES = ("default", "GH15", "SOE12", "projected", "EP", "GAA", "GAA + cubic", "Laplace", "MF")
HIGHER = {5: 40, 10: 60}  # D -> n
# Without a tensor rule and sums of exponentials, whose cost or error grows with the dimension.
HIGHER_NAMES = ("default", "projected", "EP", "GAA", "GAA + cubic", "Laplace", "MF")
HIGHER_SETS = (5, 12)
DRAWS = 40_000
# Medians of KL(q || p) at n = 100: method -> its name in the claim, the median.
AT_100 = {
    "default": ("VB", 8.94e-5),
    "EP": ("EP", 8.96e-5),
    "Laplace": ("Laplace", 2.95e-4),
    "GAA": ("GAA-D", 3.17e-4),
    "MF": ("MFVI", 0.0888),
}


def run(fast: bool = True) -> Result:
    """Medians of KL(q || p) in the plane, and of the ELBO's deficit in five and ten dimensions.

    Arguments:
        fast: 6, 6 and 4 data sets in the plane (of 10, 20 and 100 points) and 5 in higher
            dimensions; else 30, 30, 15 and 12.
    """
    with x64(), host_algebra():
        plane = [row for n, sets in SETS.items() for row in _plane(n, sets[0 if fast else 1])]
        higher = [
            row
            for dim, n in HIGHER.items()
            for row in _higher(dim, n, HIGHER_SETS[0 if fast else 1])
        ]
    return Result("clutter-2d", _claims(plane, higher), {"plane": plane, "higher": higher})


def _claims(plane: Table, higher: Table) -> list[Claim]:
    at_100 = {row["method"]: number(row, "median KL") for row in plane if row["n"] == 100}
    deficits = {(row["D"], row["method"]): number(row, "median deficit") for row in higher}
    defaults = [row for row in plane if row["method"] == "default"]
    cubic = "median KL of the cubic correction over that of the analytic gradient at n = 100, D = 2"
    excess = "largest KL of the default's Gaussian above the lowest of all methods, D = 2"
    deficit = "median ELBO deficit of the default's Gaussian to the best method, D = "
    projected = "median ELBO deficit of projected logits to the best method, D = "
    return [
        *(
            agrees(
                f"median KL of {name} ({shown}) at n = 100, D = 2",
                REFERENCE,
                value,
                at_100[name],
                0.5,
            )
            for name, (shown, value) in AT_100.items()
        ),
        below(cubic, OWN, 0.5, at_100["GAA + cubic"] / at_100["GAA"]),
        below(excess, OWN, 0.05, float(numbers(defaults, "largest excess").max())),
        *(below(f"{deficit}{d}", OWN, 1e-3, deficits[d, "default"]) for d in HIGHER),
        *(below(f"{projected}{d}", OWN, 3e-4, deficits[d, "projected"]) for d in HIGHER),
    ]


def _plane(n: int, sets: int) -> list[dict[str, Cell]]:
    """One row for each method, over data sets of n points."""
    rng, failed = np.random.default_rng(530 + n), dict.fromkeys(NAMES, 0)
    kls: dict[str, list[float]] = {name: [] for name in NAMES}
    seconds: dict[str, list[float]] = {name: [] for name in NAMES}
    for _ in range(sets):
        target = Clutter(draw_vectors(rng, n, 2))
        exact = target.exact()
        for name in NAMES:
            end = timed(name, target)
            kls[name].append(exact.kl(end.q))
            seconds[name].append(end.seconds)
            failed[name] += not end.ok
    lowest = np.min([kls[name] for name in NAMES], axis=0)
    return [
        {
            "D": 2,
            "n": n,
            "method": name,
            "median KL": float(np.median(kls[name])),
            "mean KL": float(np.mean(kls[name])),
            "largest KL": float(np.max(kls[name])),
            "largest excess": float(np.max(kls[name] - lowest)),
            "not converged": failed[name],
            "sets": sets,
            "median seconds": float(np.median(seconds[name])),
        }
        for name in NAMES
    ]


def _higher(dim: int, n: int, sets: int) -> list[dict[str, Cell]]:
    """ELBOs on common antithetic draws, so that differences have errors of some 1e-5 nat."""
    rng = np.random.default_rng(530 + dim)
    elbos: dict[str, list[float]] = {name: [] for name in HIGHER_NAMES}
    noise = np.random.default_rng(0).standard_normal((DRAWS // 2, dim))
    noise = np.concatenate([noise, -noise])
    for _ in range(sets):
        target = Clutter(draw_vectors(rng, n, dim))
        for name in HIGHER_NAMES:
            q = timed(name, target).q
            values = target.log_density_on_host(np.asarray(q.mean) + noise @ np.asarray(q.root).T)
            elbos[name].append(float(np.mean(values)) + float(q.entropy()))
    best = np.max([elbos[name] for name in HIGHER_NAMES], axis=0)
    return [
        {
            "D": dim,
            "n": n,
            "method": name,
            "median deficit": float(np.median(best - elbos[name])),
            "largest deficit": float(np.max(best - elbos[name])),
            "sets": sets,
        }
        for name in HIGHER_NAMES
    ]


def figures(result: Result) -> "dict[str, Figure]":
    """Median KL in the plane by n, and median ELBO deficits in five and ten dimensions."""
    from .drawing import panels

    with panels(1, 2, width=10.0, height=3.6) as (figure, axes):
        _medians(axes[0, 0], result.tables["plane"])
        _deficits(axes[0, 1], result.tables["higher"])
    return {"kl-and-deficit": figure}


def _medians(axes: "Axes", plane: Table) -> None:
    from .drawing import COLOURS

    # Two more than the palette has
    for name, colour in zip(NAMES, [*COLOURS, "0.5", "#8B4513"], strict=True):
        rows = [row for row in plane if row["method"] == name]
        n, median = numbers(rows, "n"), numbers(rows, "median KL")
        axes.plot(n, median, ".-", color=colour, label=name)
    axes.set(xscale="log", yscale="log", xlabel="points, D = 2", ylabel="median KL(q || p), nats")
    axes.legend(fontsize=7, ncols=2)


def _deficits(axes: "Axes", higher: Table) -> None:
    from .drawing import COLOURS

    for shift, dim in enumerate(HIGHER):
        rows = [row for row in higher if row["D"] == dim]
        places = np.arange(len(rows)) + 0.4 * (shift - 0.5)
        # The best method's deficit is zero: a bar at the foot of the log axis
        heights = np.maximum(numbers(rows, "median deficit"), 1e-7)
        label = f"D = {dim}, n = {HIGHER[dim]}"
        axes.bar(places, heights, 0.36, color=COLOURS[shift], label=label)
    axes.set_xticks(range(len(HIGHER_NAMES)), HIGHER_NAMES, rotation=30, fontsize=8)
    axes.set(yscale="log", ylabel="median ELBO below the best method's, nats")
    axes.legend(fontsize=8)


__all__ = ["figures", "run"]
