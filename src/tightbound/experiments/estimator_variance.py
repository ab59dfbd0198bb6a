"""The variance of one-draw gradient estimators, by cost function (Mohamed et al. 2020, section 3).

Mohamed, Rosca, Figurnov & Mnih, "Monte Carlo gradient estimation in machine learning": d/dtheta E
f(x) under N(mu, s^2), theta in {mu, s}, mu = s = 1, for f = (x - k)^2, exp(-k x^2), cos(k x),
against k. Curves by quadrature (`variance_curves.py`), dots by running the library's own
estimators; for the first f closed forms as well.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Float, Int

from .._numerics import to_device, x64
from .._types import Array, PyTree
from ..estimators.base import AbstractEstimator
from ..estimators.measure_valued import MeasureValued
from ..estimators.pathwise import Pathwise
from ..estimators.score import Score
from ..families.gaussian import Gaussian
from ..objectives.base import AbstractObjective, Draws, Source
from ..targets.base import Density
from .result import Cell, Claim, Result, Table, agrees, below, number, numbers
from .variance_curves import (
    CLOSED,
    COSTS,
    ESTIMATORS,
    MU,
    PARAMETERS,
    Cost,
    Pair,
    S,
    by_quadrature,
    controls,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FIGURE = "Mohamed et al. 2020, section 3"
TABLE = "the moments of the distributions drawn from, against quadrature"
_SHOWN = 1e-9  # below it is the rounding of a variance that is zero
ALLOWED = 4.0  # standard errors of a variance: one dot in 16,000 lies as far off by chance

Memory: TypeAlias = tuple[np.ndarray, np.ndarray] | None
"""What a baseline has learnt by case: its value, and the scale of its variate."""


def run(fast: bool = True, draws: int | None = None) -> Result:
    """The 2 x 3 panels, and the table of closed forms.

    Arguments:
        fast: 100,000 draws for each dot, and five dots a curve; else four million, and nine.
        draws: another number of draws; with fewer than 50,000 the standard errors of the heaviest
            tails are too small.
    """
    draws, dots = draws or (100_000 if fast else 4_000_000), 5 if fast else 9
    curves = [
        row
        for cost in COSTS
        for k in _range(cost, 61)
        for row in _rows(cost, k, by_quadrature(cost, k))
    ]
    with x64():
        simulated = simulate({cost.name: _range(cost, dots) for cost in COSTS}, draws)
    claims = _table() + _dots(simulated)
    note = (
        f"{draws:,} draws for each dot. The baselines are at their optimum, as learnt by a long"
        " run."
    )
    return Result("estimator-variance", claims, {"curves": curves, "dots": simulated}, note)


class _Expectation(AbstractObjective):
    """E_q f, with f in the place of log p."""

    drawn_from: ClassVar[Source] = Source.q

    def loss(self, draws: Draws) -> Float[Array, ""]:
        assert draws.log_p is not None
        return draws.average(draws.log_p)


class _CostTarget(Density):
    """One of `COSTS` at one k, chosen by number so that all share one compilation."""

    which: Int[jax.Array, ""]
    k: Float[jax.Array, ""]

    @property
    def coordinate_names(self) -> tuple[str, ...]:
        return ("x",)

    @property
    def dim(self) -> int:
        return 1

    def constrain(self, z: Float[Array, "1"]) -> PyTree:
        return {"x": z[0]}

    def unconstrain(self, values: PyTree) -> Float[Array, "1"]:
        return values["x"][None]

    def log_density(self, z: Float[Array, "1"]) -> Float[Array, ""]:
        return jnp.stack([cost.value(z[0], self.k, jnp) for cost in COSTS])[self.which]


def simulate(ks: Mapping[str, Float[np.ndarray, "k"]], draws: int) -> list[dict[str, Cell]]:
    """Variance of the library's estimators over `draws` keys, with its standard error.

    At the given k of each cost.
    """
    cases = [(i, float(k)) for i, cost in enumerate(COSTS) for k in ks[cost.name]]
    tuned = [controls(COSTS[i], k)[:2] for i, k in cases]
    baselines, scales = (np.stack(column) for column in zip(*tuned, strict=True))
    one = np.ones(len(cases))
    both, best = PARAMETERS, Score(1, baseline="moving_average")
    # The best baseline of the mu-gradient is not that of the s-gradient: each has its own run.
    runs: dict[str, tuple[AbstractEstimator, Memory, tuple[str, ...]]] = {
        "score": (Score(1, baseline="none"), None, both),
        "score, optimal baseline mu": (best, (baselines[:, 0], one), PARAMETERS[:1]),
        "score, optimal baseline s": (best, (baselines[:, 1], one), PARAMETERS[1:]),
        "score, Taylor": (Score(1, baseline="taylor"), (scales, np.ones_like(scales)), both),
        "pathwise": (Pathwise(1), None, both),
        "measure-valued, coupled": (MeasureValued(1), None, both),
        "measure-valued, independent": (MeasureValued(1, coupled=False), None, both),
    }
    curves = [by_quadrature(COSTS[i], k) for i, k in cases]
    rows: list[dict[str, Cell]] = []
    for name, (estimator, memory, parameters) in runs.items():
        # The state of a score estimator: nothing fixed over a run, and what its baseline has learnt
        state = (None, to_device(memory)) if name.startswith("score") else None
        found = _moments(estimator, cases, state, draws)
        shown = name.removesuffix(" mu").removesuffix(" s")
        for (i, k), curve, (variance, error) in zip(cases, curves, found, strict=True):
            for parameter in parameters:
                j = PARAMETERS.index(parameter)
                rows.append(
                    {
                        "f": COSTS[i].name,
                        "parameter": parameter,
                        "k": k,
                        "estimator": shown,
                        "variance": float(variance[j]),
                        "stderr": float(error[j]),
                        "curve": float(curve[shown][j]),
                    }
                )
    return rows


def _moments(
    estimator: AbstractEstimator, cases: list[tuple[int, float]], state: PyTree, draws: int
) -> list[tuple[Pair, Pair]]:
    """Variance and its standard error at every case."""
    q = to_device(Gaussian.diagonal(1).moved(np.array([MU]), S))
    which, k = jnp.array([i for i, _ in cases]), jnp.array([k for _, k in cases])

    @eqx.filter_jit
    def variances(which, k, state, keys):
        def of_case(case):
            which, k, state, key = case

            def gradient(key):
                def loss(q):
                    target = _CostTarget(which, k)
                    return estimator.surrogate(_Expectation(), target, q, state, key)[0]

                tree = eqx.filter_grad(loss)(q)
                return jnp.stack([tree.mean[0], tree.scale.log_sd[0] / S])

            sample = jax.vmap(gradient)(jr.split(key, draws))
            away = sample - jnp.mean(sample, axis=0, keepdims=True)
            variance, fourth = jnp.mean(away**2, axis=0), jnp.mean(away**4, axis=0)
            return variance, jnp.sqrt((fourth - variance**2) / draws)

        # One case after the other: all at once would hold `draws` gradients of each.
        return jax.lax.map(of_case, (which, k, state, keys))

    found = variances(which, k, state, jr.split(jr.key(51), len(cases)))
    return list(zip(*(np.asarray(column) for column in found), strict=True))


def _table() -> list[Claim]:
    """Every closed form at c = 2 against quadrature, where no two terms of one agree by chance."""
    found = by_quadrature(COSTS[0], MU - 2.0)
    return [
        agrees(
            f"variance of the {parameter}-gradient of {name}, f = (x - k)^2, c = 2",
            TABLE,
            CLOSED[name][j](2.0, S),
            found[name][j],
            1e-8,
        )
        for name in CLOSED
        for j, parameter in enumerate(PARAMETERS)
    ]


def _dots(rows: Table) -> list[Claim]:
    """Every dot lies on its curve, within its own standard error."""
    claims = []
    for cost in COSTS:
        for parameter in PARAMETERS:
            for name in ESTIMATORS:
                mine = _of(rows, cost, parameter, name)
                variance, curve = numbers(mine, "variance"), numbers(mine, "curve")
                # 1e-12: a variance that is zero is computed with rounding, and without an error
                error = numbers(mine, "stderr") + 1e-12 * (1 + curve)
                what = (
                    f"{name}, {parameter}-gradient of E {cost.name}: distance of dots from curve,"
                    " in standard errors"
                )
                off = float(np.max(np.abs(variance - curve) / error))
                claims.append(below(what, FIGURE, ALLOWED, off))
    return claims


def _of(rows: Table, cost: Cost, parameter: str, estimator: str) -> Table:
    """The rows of one curve."""
    chosen = (cost.name, parameter, estimator)
    return [r for r in rows if (r["f"], r["parameter"], r["estimator"]) == chosen]


def _range(cost: Cost, count: int) -> Float[np.ndarray, "k"]:
    return np.linspace(*cost.ks, count) if cost.ks[0] < 0 else np.geomspace(*cost.ks, count)


def _rows(cost: Cost, k: float, found: dict[str, Pair]) -> list[dict[str, Cell]]:
    return [
        {
            "f": cost.name,
            "parameter": parameter,
            "k": float(k),
            "estimator": name,
            "variance": float(variances[j]),
        }
        for name, variances in found.items()
        for j, parameter in enumerate(PARAMETERS)
    ]


def figures(result: Result) -> "dict[str, Figure]":
    """The 2 x 3 panels."""
    from .drawing import COLOURS, panels

    colours = dict(zip(ESTIMATORS, COLOURS, strict=False))
    with panels(2, 3, width=12.0) as (figure, axes):
        for i, parameter in enumerate(PARAMETERS):
            for j, cost in enumerate(COSTS):
                _panel(axes[i, j], result, parameter, cost, colours)
        handles, labels = axes[0, 1].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=len(ESTIMATORS))
    return {"variance": figure}


def _panel(
    axes: "Axes", result: Result, parameter: str, cost: Cost, colours: Mapping[str, str]
) -> None:
    for name, colour in colours.items():
        curve, dots = (
            [
                row
                for row in _of(result.tables[table], cost, parameter, name)
                if number(row, "variance") > _SHOWN
            ]
            for table in ("curves", "dots")
        )
        line = numbers(curve, "k"), numbers(curve, "variance")
        axes.plot(*line, color=colour, lw=1.4, label=name)
        axes.plot(numbers(dots, "k"), numbers(dots, "variance"), "o", color=colour, ms=4)
        if not curve:
            axes.annotate(f"{name}: zero", (0.02, 0.04), xycoords="axes fraction", color=colour)
    axes.set_yscale("log")
    if cost.ks[0] > 0:
        axes.set_xscale("log")
    axes.set_title(f"f = {cost.name}", parse_math=False)
    axes.set_xlabel("k")
    axes.set_ylabel(f"variance of the {parameter}-gradient")


__all__ = ["CLOSED", "COSTS", "ESTIMATORS", "by_quadrature", "figures", "run", "simulate"]
