"""Clusters with a shared shift (McNamara, Loper & Regier 2024, section 5.2, table 1 and figure 2).

The model stands in `clustering_model.py`. Amortised forward KL finds the clusters in their order;
the ELBO and its relatives, on the one data set, do not. The labels are certain, so the exact
posterior is Gaussian: how far each q is from it is reported too. q has unit variances ("mean"), or
variances of its own in the convex coordinates of heads.Gaussian ("natural").
"""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple, ParamSpec, TypeVar, cast

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Float

from .._numerics import x64
from .._types import Array
from ..estimators import FromModel
from ..families import Conditional, Conditioned, Gaussian, kl
from ..fit import fit
from ..objectives import ELBO, IWELBO, Draws, ForwardKL, SoftmaxWeighted
from ..solvers import NaturalGradient
from ..targets.simulator import SimulatedModel
from .clustering_model import (
    CENTRES,
    TRUE_SHIFT,
    DataSets,
    at_traced,
    exact_posterior,
    model,
    network,
    observed,
)
from .result import Cell, Claim, Result, Table, agrees, below, number, numbers
from .training import Schedule, harmonic, train

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SOURCE = "McNamara et al. 2024, table 1"
COMPETITORS = ("ELBO", "IWELBO", "softmax-weighted")
FORMS = ("mean", "natural")
REFINED = "forward KL, then refined"
_NOISE = 200  # standard normals by which bounds of several starts are compared
_network = eqx.filter_jit(network)

P = ParamSpec("P")
Found = TypeVar("Found")


class Sizes(NamedTuple):
    """How much is run: data sets, observations in each, steps of Adam, draws, and starts.

    `starts` are of the multi-start ELBO on the first data set.
    """

    replicates: int
    observations: int
    steps: int
    other_steps: int
    draws: int
    starts: int


SIZES = {
    "fast": Sizes(6, 100, 4_000, 2_500, 30, 12),
    "reference": Sizes(30, 100, 20_000, 4_000, 100, 100),
    "full": Sizes(100, 1000, 50_000, 50_000, 100, 100),
}


class Scored(NamedTuple):
    """What one method found, and the data sets that it was given."""

    method: str
    networks: list[Conditional]
    x: DataSets
    z: Float[np.ndarray, "replicates 5"]
    steps: int
    seconds: float


def run(
    fast: bool = True,
    reference: bool = False,
    sizes: Sizes | tuple[int, int, int, int, int, int] | None = None,
    forms: tuple[str, ...] = FORMS,
) -> Result:
    """Forward KL, ELBO, IWELBO and the softmax-weighted loss, from the same starts and data sets.

    Arguments:
        fast: 6 replicates of 100 observations; else the published 100 of 1000 and 50,000 steps
            (days on a CPU).
        reference: 30 replicates of 100 observations, 20,000 steps.
        sizes: your own; see Sizes.
        forms: of q, "mean" (unit variances) and "natural".
    """
    name = "reference" if reference else "fast" if fast else "full"
    size = SIZES[name] if sizes is None else Sizes(*sizes)
    rows: list[dict[str, Cell]] = []
    modes: list[dict[str, Cell]] = []
    start: list[Gaussian] = []
    with x64(), jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        target = model(size.observations)
        x, z = observed(target, size.replicates)
        for form in forms:
            for scored in _compared(form, target, x, z, size):
                found = _gaussians(scored.networks, scored.x)
                row = _row(scored.method, form, found, scored.x, scored.z)
                rows.append(row | {"steps": scored.steps, "seconds": scored.seconds})
                modes += _modes(scored.method, form, found)
                if scored.method == "forward KL":  # of the last form
                    start = found
    refined, seconds = _timed(_refined, target, x, start)
    row = _row(REFINED, "full", refined, x, z)
    rows.append(row | {"steps": None, "seconds": seconds})
    modes += _modes(REFINED, "full", refined)
    note = (
        f"{name}: {size.replicates} replicates of {size.observations} observations;"
        f" {size.steps:,} steps of forward KL, {size.other_steps:,} of the others."
    )
    return Result("clustering", _claims(rows, forms), {"methods": rows, "modes": modes}, note)


def _compared(
    form: str,
    target: SimulatedModel,
    x: DataSets,
    z: Float[np.ndarray, "replicates 5"],
    size: Sizes,
) -> list[Scored]:
    """All methods with one form of q; several starts for the form whose bounds compare easily."""
    networks, seconds = _timed(fit_forward, form, target, x, size.steps)
    scored = [Scored("forward KL", networks, x, z, size.steps, seconds)]
    starts = size.starts if form == "mean" else 0
    competing, seconds = _timed(
        fit_competitors, form, target, x, size.other_steps, size.draws, starts
    )
    # They ran in one program, so that each network is counted an equal share of its time.
    share = seconds / sum(len(each) for each in competing.values())
    scored += [Scored(m, competing[m], x, z, size.other_steps, share * len(x)) for m in COMPETITORS]
    if starts:
        best = _best_bound(target, competing["starts"], x[0])
        name, took = f"ELBO, best of {starts} starts", share * starts
        scored.append(Scored(name, [best], x[:1], z[:1], size.other_steps, took))
    return scored


def _schedule(steps: int) -> Schedule:
    """The published one, which divides a run of 50,000 steps into a hundred parts."""
    return harmonic(1e-3, max(1, steps // 100))


def fit_forward(form: str, target: SimulatedModel, x: DataSets, steps: int) -> list[Conditional]:
    """One network for each data set, trained on simulations."""
    networks = [_network(x.shape[1], jr.key(100 + i), form) for i in range(len(x))]
    estimator = FromModel(1)
    state = FromModel(1, held_out=100).prepare(target, networks[0], jr.key(0))

    def loss(q, _, key):
        return estimator.surrogate(ForwardKL(), target, q, state, key)[0]

    return train(loss, networks, x, jr.key(9), rate=_schedule(steps), steps=steps)


def fit_competitors(
    form: str, target: SimulatedModel, x: DataSets, steps: int, draws: int, starts: int = 0
) -> dict[str, list[Conditional]]:
    """One network for each objective and data set, and `starts` of the ELBO on the first data set.

    In one program: the objective is chosen by number, so that all networks compile once.
    """
    objectives = (ELBO(), IWELBO(draws), SoftmaxWeighted(draws))
    which = np.repeat([0, 1, 2, 3], [len(x)] * 3 + [starts])
    index = np.concatenate([np.tile(np.arange(len(x)), 3), np.zeros(starts, int)])
    seeds = np.concatenate([np.tile(np.arange(len(x)), 3), 1000 + np.arange(starts)])
    networks = [_network(x.shape[1], jr.key(100 + int(i)), form) for i in seeds]

    def loss(q, data, key):
        x, objective = data
        at, target_at = Conditioned(q, x), at_traced(target, x)
        z = jax.vmap(at._sample)(jr.split(key, draws))
        drawn = Draws(jax.vmap(target_at.log_density)(z), jax.vmap(at._log_prob)(z))
        return jnp.stack([o.loss(drawn) for o in objectives])[objective]

    data = (x[index], jnp.asarray(which % 3))  # the further starts are the ELBO's
    found = train(loss, networks, data, jr.key(9), rate=_schedule(steps), steps=steps)
    names = (*COMPETITORS, "starts")
    return {
        name: [q for q, i in zip(found, which, strict=True) if i == j]
        for j, name in enumerate(names)
    }


def _timed(
    function: Callable[P, Found], *arguments: P.args, **named: P.kwargs
) -> tuple[Found, float]:
    """What a function returns, and the seconds that it took."""
    began = time.perf_counter()
    return function(*arguments, **named), time.perf_counter() - began


def _gaussians(networks: list[Conditional], x: DataSets) -> list[Gaussian]:
    """Each network's q at its data."""
    found = []
    for q, data in zip(networks, x, strict=True):
        moments = q.head.moments(q.eta(data))
        assert moments is not None  # a Gaussian head has them in closed form
        mean, sd = (np.asarray(part, float) for part in moments)
        found.append(Gaussian.diagonal(6).moved(mean, sd))
    return found


def _refined(target: SimulatedModel, x: DataSets, start: list[Gaussian]) -> list[Gaussian]:
    """The full-rank Gaussian of the largest ELBO at each data set, by natural gradient.

    Started from an amortised answer.
    """
    found = []
    for q, data in zip(start, x, strict=True):
        full = Gaussian.from_root(q.mean, np.diag(q.sd))
        refined = fit(target.at(data), full, solver=NaturalGradient()).q
        found.append(cast(Gaussian, refined))  # of the family that it started from
    return found


def _modes(method: str, form: str, found: list[Gaussian]) -> list[dict[str, Cell]]:
    means = [[float(m) for m in q.mean] for q in found]
    return [
        {"method": method, "form": form, "s": s, **{f"z[{j}]": value for j, value in enumerate(z)}}
        for s, *z in means
    ]


def _row(
    method: str,
    form: str,
    found: list[Gaussian],
    x: DataSets,
    z: Float[np.ndarray, "replicates 5"],
) -> dict[str, Cell]:
    """The scores of the q's that one method found, each at its data set."""
    means, sds = np.array([q.mean for q in found]), np.array([q.sd for q in found])
    at = means[:, 1:]
    nearest = np.argmin(np.abs(at[:, :, None] - z[:, None, :]), axis=2)
    distance = np.abs(at - z).sum(axis=1)
    posteriors = [
        exact_posterior(np.asarray(data, np.float64), truth)
        for data, truth in zip(x, z, strict=True)
    ]
    exact = [float(kl(p, q)) for p, q in zip(posteriors, found, strict=True)]
    least = [_least(form, p) for p in posteriors]
    return {
        "method": method,
        "form": form,
        "replicates": len(found),
        "ordered": float(np.mean(np.all(np.diff(at, axis=1) > 0, axis=1))),
        "nearest": float(np.mean(np.all(nearest == np.arange(5), axis=1))),
        "l1": float(distance.mean()),
        "l1 sd": float(distance.std()),
        "shift": float(np.median(means[:, 0])),
        "sd of q(Z_1)": float(np.median(sds[:, 1])),
        "median KL(p || q)": float(np.median(exact)),
        "least KL(p || q) of the family": float(np.median(least)),
    }


def _least(form: str, p: Gaussian) -> float:
    """KL(p || q) of the best q of that form: it has the moments of p that the form leaves free."""
    if form == "full":
        return 0.0
    free = Gaussian.diagonal(6).moved(p.mean, 1.0 if form == "mean" else p.sd)
    return float(kl(p, free))


def _best_bound(
    target: SimulatedModel, networks: list[Conditional], x: Float[Array, "n"]
) -> Conditional:
    """Of several networks with unit variances the one with the largest ELBO at x."""
    means = [q.mean for q in _gaussians(networks, jnp.stack([x] * len(networks)))]
    evaluate = jax.jit(jax.vmap(at_traced(target, x).log_density))
    noise = np.random.default_rng(0).standard_normal((_NOISE, 6))
    # The entropy is the same for all of them, and is left out.
    bounds = [float(np.mean(np.asarray(evaluate(jnp.asarray(m + noise))))) for m in means]
    return networks[int(np.argmax(bounds))]


def _claims(rows: Table, forms: tuple[str, ...]) -> list[Claim]:
    claims: list[Claim] = []
    for form in forms:
        by = {row["method"]: row for row in rows if row["form"] == form}
        what = f"share of replicates that forward KL orders ({form})"
        ordered = {m: number(by[m], "ordered") for m in ("forward KL", *COMPETITORS)}
        claims.append(agrees(what, SOURCE, 1.0, ordered["forward KL"], 0.0))
        claims += [
            below(f"share of replicates that the {m} orders ({form})", SOURCE, 0.1, ordered[m])
            for m in COMPETITORS
        ]
        worst = min(number(by[m], "l1") for m in COMPETITORS)
        what = (
            f"l1 distance of forward KL's modes to the truth over the least of the others ({form})"
        )
        claims.append(below(what, SOURCE, 0.5, number(by["forward KL"], "l1") / worst))
    return claims


def figures(result: Result) -> "dict[str, Figure]":
    """Where each method puts the five modes and the shift."""
    from .drawing import panels

    forms = {"unit variances": ("mean",), "variances of its own": ("natural", "full")}
    with panels(1, 3, width=13.0) as (figure, axes):
        *left, right = axes[0]
        labels: list[str] = []
        for axis, (words, shown) in zip(left, forms.items(), strict=True):
            own = [r for r in result.tables["modes"] if r["form"] in shown]
            labels += [f"{method}, {words}" for method in _panel(axis, right, own, len(labels))]
            axis.set(xlabel="j", ylabel="mode of q(Z$_j$)", title=f"Modes, {words}")
            axis.legend(fontsize=7)
        right.set(
            xlabel="mode of q(S)",
            title="Shift; the truth is 100",
            yticks=range(len(labels)),
            yticklabels=labels,
        )
        right.tick_params(axis="y", labelsize=7)
        right.axvline(TRUE_SHIFT, color="black", lw=0.8)
    return {"modes": figure}


def _panel(axes: "Axes", shifts: "Axes", modes: Table, first: int) -> list[str]:
    """The modes of one form of q on `axes`, its shifts on `shifts` from row `first` on.

    Returns the methods that were drawn.
    """
    from .drawing import COLOURS

    methods = list(dict.fromkeys(str(r["method"]) for r in modes))
    for i, (method, colour) in enumerate(zip(methods, COLOURS, strict=False)):
        rows = [r for r in modes if r["method"] == method]
        position = np.arange(5) + 0.15 * (i - 2)  # methods side by side
        for k, row in enumerate(rows):
            height = [number(row, f"z[{j}]") for j in range(5)]
            label = None if k else method
            axes.plot(position, height, ".", color=colour, alpha=0.6, label=label)
        shifts.plot(numbers(rows, "s"), [first + i] * len(rows), "o", color=colour, alpha=0.6)
    truth = TRUE_SHIFT + CENTRES
    axes.plot(np.arange(5), truth, "_", color="black", ms=18, label="mean of the truth")
    return methods


__all__ = [
    "SIZES",
    "Sizes",
    "exact_posterior",
    "figures",
    "fit_competitors",
    "fit_forward",
    "model",
    "network",
    "observed",
    "run",
]
