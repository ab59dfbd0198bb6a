"""Mohamed, Rosca, Figurnov & Mnih 2020, section 3: the variance of gradient estimators of one draw,
by cost function.

d/dtheta E f(x) under N(mu, s^2), theta in {mu, s}, mu = s = 1, for f = (x - k)^2, exp(-k x^2),
cos(k x), against k. Curves by quadrature, dots by running the library's own estimators; for the
first f also the closed forms of the lecture spec, section 5.1.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np

from .._numerics import to_device, x64
from ..estimators.measure_valued import MeasureValued
from ..estimators.pathwise import Pathwise
from ..estimators.score import Score
from ..families.gaussian import Gaussian
from ..objectives.base import AbstractObjective, Draws, Source
from ..targets.base import Density
from .result import Result, agrees, below

FIGURE = "Mohamed et al. 2020, section 3 (lecture fig. 2)"
TABLE = "lecture spec, section 5.1"
MU, S = 1.0, 1.0
PARAMETERS = ("mu", "s")
_SHOWN = 1e-9  # below it is the rounding of a variance that is zero
ALLOWED = 4.0  # standard errors of a variance estimate: lecture spec, section 5.1


class Cost(NamedTuple):
    """f(x, k) with its first two derivatives in x, and the range of k that is shown."""

    name: str
    value: Callable[[Any, Any, Any], Any]
    slope: Callable[[Any, Any], Any]
    bend: Callable[[Any, Any], Any]
    ks: tuple[float, float]


COSTS = (
    Cost(
        "(x - k)^2",
        lambda x, k, xp: (x - k) ** 2,
        lambda x, k: 2 * (x - k),
        lambda x, k: 2.0 + 0 * x,
        (-3.0, 3.0),
    ),
    Cost(
        "exp(-k x^2)",
        lambda x, k, xp: xp.exp(-k * x**2),
        lambda x, k: -2 * k * x * np.exp(-k * x**2),
        lambda x, k: (4 * k**2 * x**2 - 2 * k) * np.exp(-k * x**2),
        (0.1, 10.0),
    ),
    Cost(
        "cos(k x)",
        lambda x, k, xp: xp.cos(k * x),
        lambda x, k: -k * np.sin(k * x),
        lambda x, k: -(k**2) * np.cos(k * x),
        (0.1, 10.0),
    ),
)

# Lecture spec, section 5.1: for f = (x - k)^2 and c = mu - k, the variance of the mu-gradient and
# of the s-gradient.
CLOSED: dict[str, tuple[Callable[[float, float], float], Callable[[float, float], float]]] = {
    "score": (
        lambda c, s: c**4 / s**2 + 14 * c**2 + 15 * s**2,
        lambda c, s: 2 * c**4 / s**2 + 60 * c**2 + 74 * s**2,
    ),
    "pathwise": (lambda c, s: 4 * s**2, lambda c, s: 4 * c**2 + 8 * s**2),
    "measure-valued, coupled": (
        lambda c, s: 16 * c**2 / math.pi - 4 * c**2,
        lambda c, s: 4 * c**2 + 4 * s**2,
    ),
    "measure-valued, independent": (
        lambda c, s: (4 * c**2 * (2 - math.pi / 2) + 4 * s**2) / math.pi,
        lambda c, s: 16 * c**2 + 8 * s**2,
    ),
}
ESTIMATORS = ("score", "score, optimal baseline", "score, Taylor", *list(CLOSED)[1:])


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


# -- curves
# -----------------------------------------------------------------------------------------------------------


def by_quadrature(cost: Cost, k: float, mu: float = MU, s: float = S) -> dict[str, np.ndarray]:
    """Variance of the mu- and the s-gradient, `[2]`, of every estimator, by Gauss-Legendre."""

    def f(u: Any) -> Any:
        return cost.value(mu + s * u, k, np)

    u, normal, maxwell = _line()
    scores = np.stack([u, u**2 - 1]) / s
    pathwise = cost.slope(mu + s * u, k) * np.stack([np.ones_like(u), u])
    baseline, scale, control = controls(cost, k, u, normal, mu, s)
    found = {
        "score": _variance(f(u) * scores, normal),
        "score, optimal baseline": _variance((f(u) - baseline[:, None]) * scores, normal),
        "score, Taylor": _variance(f(u) * scores - scale[:, None] * control, normal),
        "pathwise": _variance(pathwise, normal),
    }
    r, rayleigh = _half_line()
    constants = 1 / (s * math.sqrt(2 * math.pi)), 1 / s
    share, uniform = _unit_interval()
    both = (f(u)[:, None] - f(np.outer(u, share))).ravel()
    coupled = _variance(f(r) - f(-r), rayleigh), _variance(both, np.outer(maxwell, uniform).ravel())
    apart = (
        _variance(f(r), rayleigh) + _variance(f(-r), rayleigh),
        _variance(f(u), maxwell) + _variance(f(u), normal),
    )
    for name, parts in (("coupled", coupled), ("independent", apart)):
        found[f"measure-valued, {name}"] = np.array(
            [c**2 * part for c, part in zip(constants, parts, strict=True)]
        )
    return found


def controls(
    cost: Cost, k: float, u: Any, normal: Any, mu: float = MU, s: float = S
) -> tuple[Any, Any, Any]:
    """The optimal scalar baseline `[2]`, the optimal scale of the Taylor control variate `[2]`, and
    the variate `[2, m]`.
    """
    f, scores = cost.value(mu + s * u, k, np), np.stack([u, u**2 - 1]) / s
    slope, bend = (np.float64(d(np.asarray(mu), k)) for d in (cost.slope, cost.bend))
    polynomial = cost.value(mu, k, np) + slope * s * u + 0.5 * bend * (s * u) ** 2
    control = polynomial * scores - np.array([slope, bend * s])[:, None]
    together, own = (f * scores * control) @ normal, control**2 @ normal
    return (
        (f * scores**2) @ normal / (scores**2 @ normal),
        together / np.where(own > 0, own, 1.0),
        control,
    )


def _variance(values: np.ndarray, weights: np.ndarray) -> Any:
    return (values**2) @ weights - (values @ weights) ** 2


@functools.cache
def _line() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Nodes on the line with the weights of the normal and of the double-sided Maxwell
    distribution.
    """
    u, w = np.polynomial.legendre.leggauss(600)
    normal = 12 * w * np.exp(-0.5 * (12 * u) ** 2) / math.sqrt(2 * math.pi)
    return 12 * u, normal, normal * (12 * u) ** 2


@functools.cache
def _half_line() -> tuple[np.ndarray, np.ndarray]:
    u, w = np.polynomial.legendre.leggauss(400)
    r = 6 * (u + 1)
    return r, 6 * w * r * np.exp(-0.5 * r**2)


@functools.cache
def _unit_interval() -> tuple[np.ndarray, np.ndarray]:
    u, w = np.polynomial.legendre.leggauss(100)
    return 0.5 * (u + 1), 0.5 * w


# -- dots
# -------------------------------------------------------------------------------------------------------------


class _Expectation(AbstractObjective):
    """E_q f, with f in the place of log p."""

    drawn_from: ClassVar[Source] = Source.q

    def loss(self, draws: Draws) -> jax.Array:
        assert draws.log_p is not None
        return draws.average(draws.log_p)


class _CostTarget(Density):
    """One of `COSTS` at one k, chosen by number so that all share one compilation."""

    which: jax.Array
    k: jax.Array

    @property
    def coordinate_names(self) -> tuple[str, ...]:
        return ("x",)

    @property
    def dim(self) -> int:
        return 1

    def constrain(self, z: Any) -> Any:
        return {"x": z[0]}

    def unconstrain(self, values: Any) -> Any:
        return values["x"][None]

    def log_density(self, z: jax.Array) -> jax.Array:
        return jnp.stack([cost.value(z[0], self.k, jnp) for cost in COSTS])[self.which]


def simulate(ks: dict[str, np.ndarray], draws: int) -> list[dict[str, Any]]:
    """Variance of the library's estimators over `draws` keys at the given k of each cost, with its
    standard error.
    """
    cases = [(i, k) for i, cost in enumerate(COSTS) for k in ks[cost.name]]
    u, normal, _ = _line()
    tuned = [controls(COSTS[i], k, u, normal)[:2] for i, k in cases]
    baselines, scales = (np.stack(column) for column in zip(*tuned, strict=True))
    one = np.ones(len(cases))
    runs = {
        "score": (Score(1, baseline="none"), None, PARAMETERS),
        "score, optimal baseline mu": (
            Score(1, baseline="moving_average"),
            (baselines[:, 0], one),
            PARAMETERS[:1],
        ),
        "score, optimal baseline s": (
            Score(1, baseline="moving_average"),
            (baselines[:, 1], one),
            PARAMETERS[1:],
        ),
        "score, Taylor": (Score(1, baseline="taylor"), (scales, np.ones_like(scales)), PARAMETERS),
        "pathwise": (Pathwise(1), None, PARAMETERS),
        "measure-valued, coupled": (MeasureValued(1), None, PARAMETERS),
        "measure-valued, independent": (MeasureValued(1, coupled=False), None, PARAMETERS),
    }
    curves = [by_quadrature(COSTS[i], k) for i, k in cases]
    rows = []
    for name, (estimator, memory, parameters) in runs.items():
        found = _moments(estimator, cases, memory, draws)
        shown = name.removesuffix(" mu").removesuffix(" s")
        for (i, k), curve, (variance, error) in zip(cases, curves, found, strict=True):
            for parameter in parameters:
                j = PARAMETERS.index(parameter)
                row = {"f": COSTS[i].name, "parameter": parameter, "k": float(k)}
                row |= {"estimator": shown, "variance": float(variance[j])}
                rows.append(row | {"stderr": float(error[j]), "curve": float(curve[shown][j])})
    return rows


def _moments(
    estimator: Any, cases: list[tuple[int, float]], memory: Any, draws: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Variance and its standard error, `[2]` each, at every case."""
    q = to_device(Gaussian.diagonal(1).moved(np.array([MU]), S))
    which, k = jnp.array([i for i, _ in cases]), jnp.array([float(k) for _, k in cases])
    state = (None, to_device(memory)) if isinstance(estimator, Score) else None

    @eqx.filter_jit
    def variances(which, k, state, keys):
        def of_case(case):
            which, k, state, key = case

            def gradient(key):
                loss = lambda q: estimator.surrogate(  # noqa: E731
                    _Expectation(), _CostTarget(which, k), q, state, key
                )[0]
                tree = eqx.filter_grad(loss)(q)
                return jnp.stack([tree.mean[0], tree.scale.log_sd[0] / S])

            sample = jax.vmap(gradient)(jr.split(key, draws))
            away = sample - jnp.mean(sample, axis=0, keepdims=True)
            variance, fourth = jnp.mean(away**2, axis=0), jnp.mean(away**4, axis=0)
            return variance, jnp.sqrt((fourth - variance**2) / draws)

        return jax.lax.map(of_case, (which, k, state, keys))

    found = variances(which, k, state, jr.split(jr.key(51), len(cases)))
    return list(zip(*(np.asarray(column) for column in found), strict=True))


# -- claims
# -----------------------------------------------------------------------------------------------------------


def _table() -> list[dict[str, Any]]:
    """Every closed form at c = 2 against quadrature, where no two terms of one agree by chance."""
    found = by_quadrature(COSTS[0], MU - 2.0)
    return [
        agrees(
            f"variance of the {parameter}-gradient of {name}, f = (x - k)^2, c = 2", TABLE,
            CLOSED[name][j](2.0, S), found[name][j], 1e-8,
        )
        for name in CLOSED
        for j, parameter in enumerate(PARAMETERS)
    ]  # fmt: skip


def _dots(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    claims = []
    for cost in COSTS:
        for parameter in PARAMETERS:
            for name in ESTIMATORS:
                mine = [
                    r
                    for r in rows
                    if (r["f"], r["parameter"], r["estimator"]) == (cost.name, parameter, name)
                ]
                off = max(
                    abs(r["variance"] - r["curve"]) / (r["stderr"] + 1e-12 * (1 + r["curve"]))
                    for r in mine
                )
                what = (
                    f"{name}, {parameter}-gradient of E {cost.name}: distance of dots from curve,"
                    " in standard errors"
                )
                claims.append(below(what, FIGURE, ALLOWED, off))
    return claims


def _range(cost: Cost, count: int) -> np.ndarray:
    return np.linspace(*cost.ks, count) if cost.ks[0] < 0 else np.geomspace(*cost.ks, count)


def _rows(cost: Cost, k: float, found: dict[str, np.ndarray]) -> list[dict[str, Any]]:
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


def figures(result: Result) -> dict[str, Any]:
    """The 2 x 3 panels."""
    from .drawing import COLOURS, panels

    with panels(2, 3, width=12.0) as (figure, axes):
        for i, parameter in enumerate(PARAMETERS):
            for j, cost in enumerate(COSTS):
                _panel(
                    axes[i, j],
                    result,
                    parameter,
                    cost,
                    dict(zip(ESTIMATORS, COLOURS, strict=False)),
                )
        handles, labels = axes[0, 1].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=len(ESTIMATORS))
    return {"variance": figure}


def _panel(axes: Any, result: Result, parameter: str, cost: Cost, colours: dict[str, str]) -> None:
    def of(table: str, name: str) -> list[dict[str, Any]]:
        chosen = (cost.name, parameter, name)
        return [
            r for r in result.tables[table] if (r["f"], r["parameter"], r["estimator"]) == chosen
        ]

    for name, colour in colours.items():
        curve, dots = (
            [r for r in of(table, name) if r["variance"] > _SHOWN] for table in ("curves", "dots")
        )
        axes.plot(
            [r["k"] for r in curve],
            [r["variance"] for r in curve],
            color=colour,
            lw=1.4,
            label=name,
        )
        axes.plot([r["k"] for r in dots], [r["variance"] for r in dots], "o", color=colour, ms=4)
        if not curve:
            axes.annotate(f"{name}: zero", (0.02, 0.04), xycoords="axes fraction", color=colour)
    axes.set_yscale("log")
    if cost.ks[0] > 0:
        axes.set_xscale("log")
    axes.set_title(f"f = {cost.name}", parse_math=False)
    axes.set_xlabel("k")
    axes.set_ylabel(f"variance of the {parameter}-gradient")


__all__ = ["CLOSED", "COSTS", "ESTIMATORS", "by_quadrature", "figures", "run", "simulate"]
