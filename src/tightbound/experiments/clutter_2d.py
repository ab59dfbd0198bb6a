"""The clutter problem in the plane and beyond (clutter spec, section 5.3).

KL against a grid, ELBO deficits above it.
"""

from typing import Any

import numpy as np

from .._numerics import host_algebra, x64
from ..targets.clutter import Clutter
from .clutter_methods import draw_vectors, timed
from .result import Result, agrees, below

SOURCE = "clutter spec, section 5.3"
SETS = {10: (6, 30), 20: (6, 30), 100: (4, 15)}  # n -> data sets: fast, full
NAMES = ("default", "GH15", "SOE12", "projected", "EP", "GAA", "GAA + cubic", "Laplace", "MF")
HIGHER = {5: 40, 10: 60}  # D -> n
HIGHER_NAMES = ("default", "projected", "EP", "GAA", "GAA + cubic", "Laplace", "MF")
HIGHER_SETS = (5, 12)
DRAWS = 40_000
# The same section, medians of KL(q || p) at n = 100.
AT_100 = {"default": ("VB", 8.94e-5), "EP": ("EP", 8.96e-5), "Laplace": ("Laplace", 2.95e-4), "GAA": ("GAA-D", 3.17e-4),
          "MF": ("MFVI", 0.0888)}  # fmt: skip


def run(fast: bool = True) -> Result:
    """Medians of KL(q || p) in two dimensions for n = 10, 20, 100, and of the ELBO's deficit in
    five and ten.

    Arguments:
        fast: 6, 6 and 4 data sets in the plane and 5 in higher dimensions; else 30, 30, 15 and 12,
            as in the spec.
    """
    with x64(), host_algebra():
        plane = [row for n, sets in SETS.items() for row in _plane(n, sets[0 if fast else 1])]
        higher = [
            row
            for dim, n in HIGHER.items()
            for row in _higher(dim, n, HIGHER_SETS[0 if fast else 1])
        ]
    at_100 = {row["method"]: row["median KL"] for row in plane if row["n"] == 100}
    deficits = {(row["D"], row["method"]): row["median deficit"] for row in higher}
    worst_of_default = max(row["largest excess"] for row in plane if row["method"] == "default")
    claims = [
        agrees(f"median KL of {name} ({spec}) at n = 100, D = 2", SOURCE, value, at_100[name], 0.5)
        for name, (spec, value) in AT_100.items()
    ]
    claims += [
        below("median KL of the cubic correction over that of the analytic gradient at n = 100, D = 2", SOURCE, 0.5,
              at_100["GAA + cubic"] / at_100["GAA"]),
        below("largest KL of the default's Gaussian above the lowest of all methods, D = 2", SOURCE, 0.05, worst_of_default),
        *(below(f"median ELBO deficit of the default's Gaussian to the best method, D = {dim}", SOURCE, 1e-3,
                deficits[dim, "default"]) for dim in HIGHER),
        *(below(f"median ELBO deficit of projected logits to the best method, D = {dim}", SOURCE, 3e-4,
                deficits[dim, "projected"]) for dim in HIGHER),
    ]  # fmt: skip
    return Result("clutter-2d", claims, {"plane": plane, "higher": higher})


def _plane(n: int, sets: int) -> list[dict[str, Any]]:
    rng, kls, seconds, failed = np.random.default_rng(530 + n), {}, {}, dict.fromkeys(NAMES, 0)
    for _ in range(sets):
        target = Clutter(draw_vectors(rng, n, 2))
        exact = target.exact()
        for name in NAMES:
            end = timed(name, target)
            kls.setdefault(name, []).append(exact.kl(end.q))
            seconds.setdefault(name, []).append(end.seconds)
            failed[name] += not end.ok
    lowest = np.min([kls[name] for name in NAMES], axis=0)
    return [
        {
            "D": 2, "n": n, "method": name, "median KL": float(np.median(kls[name])), "mean KL": float(np.mean(kls[name])),
            "largest KL": float(np.max(kls[name])), "largest excess": float(np.max(kls[name] - lowest)),
            "not converged": failed[name], "sets": sets, "median seconds": float(np.median(seconds[name])),
        }
        for name in NAMES
    ]  # fmt: skip


def _higher(dim: int, n: int, sets: int) -> list[dict[str, Any]]:
    """ELBOs on common antithetic draws, so that differences have errors of some 1e-5 nat."""
    rng, elbos = np.random.default_rng(530 + dim), {}
    noise = np.random.default_rng(0).standard_normal((DRAWS // 2, dim))
    noise = np.concatenate([noise, -noise])
    for _ in range(sets):
        target = Clutter(draw_vectors(rng, n, dim))
        for name in HIGHER_NAMES:
            q = timed(name, target).q
            values = target.log_density_on_host(np.asarray(q.mean) + noise @ np.asarray(q.root).T)
            elbos.setdefault(name, []).append(float(np.mean(values)) + float(q.entropy()))
    best = np.max([elbos[name] for name in HIGHER_NAMES], axis=0)
    return [
        {
            "D": dim, "n": n, "method": name, "median deficit": float(np.median(best - elbos[name])),
            "largest deficit": float(np.max(best - elbos[name])), "sets": sets,
        }
        for name in HIGHER_NAMES
    ]  # fmt: skip


def figures(result: Result) -> dict[str, Any]:
    """Median KL in the plane by n, and median ELBO deficits in five and ten dimensions."""
    from .drawing import COLOURS, panels

    plane, higher = result.tables["plane"], result.tables["higher"]
    with panels(1, 2, width=10.0, height=3.6) as (figure, axes):
        colours = dict(zip(NAMES, [*COLOURS, "0.5", "#8B4513"], strict=True))
        for name in NAMES:
            rows = [row for row in plane if row["method"] == name]
            values = [row["median KL"] for row in rows]
            axes[0, 0].plot(
                [row["n"] for row in rows], values, ".-", color=colours[name], label=name
            )
        axes[0, 0].set(
            xscale="log", yscale="log", xlabel="points, D = 2", ylabel="median KL(q || p), nats"
        )
        axes[0, 0].legend(fontsize=7, ncols=2)
        for shift, dim in enumerate(HIGHER):
            rows = [row for row in higher if row["D"] == dim]
            places = np.arange(len(rows)) + 0.4 * (shift - 0.5)
            values = np.maximum([row["median deficit"] for row in rows], 1e-7)
            axes[0, 1].bar(
                places, values, 0.36, color=COLOURS[shift], label=f"D = {dim}, n = {HIGHER[dim]}"
            )
        axes[0, 1].set_xticks(range(len(HIGHER_NAMES)), HIGHER_NAMES, rotation=30, fontsize=8)
        axes[0, 1].set(yscale="log", ylabel="median ELBO below the best method's, nats")
        axes[0, 1].legend(fontsize=8)
    return {"kl-and-deficit": figure}


__all__ = ["figures", "run"]
