"""McNamara, Loper & Regier 2024, section 5.2, table 1 and figure 2: clusters with a shared shift.

S ~ N(0, 100^2), Z_j | S ~ N(mu_j + S, 0.5^2) with mu = (-20, -10, 0, 10, 20), X_i | Z an equal
mixture of N(Z_j, 0.1^2). Amortised forward KL finds the clusters in their order; the ELBO and its
relatives, on the one data set, do not. Clusters lie a hundred sds apart, so the labels are certain
and the exact posterior is Gaussian: how far each q is from it is reported too. q has unit variances
("mean"), or variances of its own in the convex coordinates of heads.Gaussian ("natural").
"""

import functools
import math
import time
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np

from .._numerics import x64
from .._types import Array, PyTree
from ..amortised import encoders, heads
from ..estimators import FromModel
from ..families import Conditional, Conditioned, Gaussian, Scaling, kl
from ..fit import fit
from ..objectives import ELBO, IWELBO, Draws, ForwardKL, SoftmaxWeighted
from ..solvers import NaturalGradient
from ..targets.simulator import SimulatedModel, SimulatorPosterior, from_simulator
from .result import Result, agrees, below
from .training import harmonic, train

SOURCE = "McNamara et al. 2024, table 1; forward-KL spec, sections 2.2 and 5.2"
CENTRES = np.array([-20.0, -10.0, 0.0, 10.0, 20.0])
SPREAD, NOISE, SHIFT_SD, TRUE_SHIFT = 0.5, 0.1, 100.0, 100.0
COMPETITORS = ("ELBO", "IWELBO", "softmax-weighted")
FORMS = ("mean", "natural")
REFINED = "forward KL, then refined"
# replicates, observations, steps of forward KL, steps of the others, draws, starts of the
# multi-start ELBO
SIZES = {
    "fast": (6, 100, 4_000, 2_500, 30, 12),
    "reference": (30, 100, 20_000, 4_000, 100, 100),
    "full": (100, 1000, 50_000, 50_000, 100, 100),
}


class Pooled(eqx.Module):
    """Numbers for each of a few learned seeds: rows by a network and averaged, the seed added, one
    layer for all seeds.

    As in the published pooling by attention, the seeds share everything but themselves. Modes with
    weights of their own would be put in order by the prior while none has found the data, and the
    comparison would be about that.
    """

    first: eqx.nn.Linear
    second: eqx.nn.Linear
    seeds: Any
    together: eqx.nn.Linear
    last: eqx.nn.Linear

    @staticmethod
    def make(count: int, outputs: int, key: Any, width: int = 64) -> "Pooled":
        a, b, c, d, e = jr.split(key, 5)
        linear = functools.partial(eqx.nn.Linear, dtype=jnp.float32)
        seeds = jr.normal(c, (count, width), jnp.float32) * (2 / (count + width)) ** 0.5  # Xavier
        return Pooled(
            linear(1, width, key=a),
            linear(width, width, key=b),
            seeds,
            linear(width, width, key=d),
            linear(width, outputs, key=e),
        )

    def __call__(self, x: Array) -> Array:
        """`[seeds, outputs]` for x `[n]`."""
        rows = jax.vmap(lambda row: self.second(jax.nn.relu(self.first(row[None]))))(x)
        h = jnp.mean(jax.nn.relu(rows), axis=0) + self.seeds
        return jax.vmap(self.last)(h + jax.nn.relu(jax.vmap(self.together)(h)))


class TwoEncoders(encoders.AbstractEncoder):
    """One network for S and one for Z, trained together, on x / 100.

    What places q is multiplied by 100 in turn.
    """

    shift: Pooled
    centres: Pooled

    def __call__(self, x: PyTree) -> Array:
        out = jnp.concatenate([self.shift(x / SHIFT_SD), self.centres(x / SHIFT_SD)])
        return jnp.concatenate([out[:, 0] * SHIFT_SD, *(1.0 + column for column in out[:, 1:].T)])


def model(n: int) -> SimulatedModel:
    """The model with n observations; its values are s and z[0], ..., z[4]."""

    def draw_prior(key):
        a, b = jr.split(key)
        s = SHIFT_SD * jr.normal(a)
        return {"s": s, "z": s + CENTRES + SPREAD * jr.normal(b, (5,))}

    def simulate(key, params):
        a, b = jr.split(key)
        return params["z"][jr.randint(a, (n,), 0, 5)] + NOISE * jr.normal(b, (n,))

    def log_prior(params):
        # networks in float32 train at half the cost
        centres = jnp.asarray(CENTRES, params["z"].dtype)
        within = jnp.sum(((params["z"] - centres - params["s"]) / SPREAD) ** 2)
        return (
            -0.5 * (params["s"] / SHIFT_SD) ** 2
            - 0.5 * within
            - 5 * math.log(SPREAD * math.sqrt(2 * math.pi))
        )

    def log_likelihood(params, x):
        # One vector over the observations for each cluster: a sum over a last axis of length 5
        # takes five times as long.
        each = [-0.5 * ((x - params["z"][j]) / NOISE) ** 2 for j in range(5)]
        top = jax.lax.stop_gradient(functools.reduce(jnp.maximum, each))
        mixed = top + jnp.log(functools.reduce(jnp.add, [jnp.exp(e - top) for e in each]))
        return jnp.sum(mixed - math.log(NOISE * math.sqrt(2 * math.pi) * 5))

    return from_simulator(draw_prior, simulate, log_prior=log_prior, log_likelihood=log_likelihood)


def run(
    fast: bool = True, reference: bool = False, sizes: Any = None, forms: tuple[str, ...] = FORMS
) -> Result:
    """Forward KL, ELBO, IWELBO and the softmax-weighted loss from the same starts on the same data
    sets.

    Arguments:
        fast: 6 replicates of 100 observations; else the published 100 of 1000 and 50,000 steps
            (days on a CPU).
        reference: 30 replicates of 100 observations, 20,000 steps.
        sizes: (replicates, observations, steps of forward KL, of the others, draws, starts) of your
            own.
        forms: of q, "mean" (unit variances) and "natural".
    """
    name = "reference" if reference else "fast" if fast else "full"
    replicates, n, steps, other_steps, draws, starts = SIZES[name] if sizes is None else sizes
    with x64(), jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        target = model(n)
        x, z = observed(target, replicates)
        rows, modes = [], []
        for form in forms:
            found, seconds = _timed(fit_forward, form, target, x, steps)
            scored = [("forward KL", found, x, z, steps, seconds)]
            many = starts if form == "mean" else 0
            competing, seconds = _timed(fit_competitors, form, target, x, other_steps, draws, many)
            share = seconds / len(jax.tree.leaves(list(competing.values()), is_leaf=_is_network))
            scored += [
                (m, competing[m], x, z, other_steps, share * replicates) for m in COMPETITORS
            ]
            if many:
                best = _best_bound(target, competing["starts"], x[0])
                scored.append(
                    (
                        f"ELBO, best of {many} starts",
                        [best],
                        x[:1],
                        z[:1],
                        other_steps,
                        share * many,
                    )
                )
            for method, networks, data, truth, own_steps, took in scored:
                found = _gaussians(networks, data)
                rows.append(
                    _row(method, form, found, data, truth) | {"steps": own_steps, "seconds": took}
                )
                modes += _modes(method, form, found)
        start = _gaussians(scored[0][1], x)
    refined, seconds = _timed(_refined, target, x, start)
    rows.append(_row(REFINED, "full", refined, x, z) | {"steps": None, "seconds": seconds})
    modes += _modes(REFINED, "full", refined)
    note = (
        f"{name}: {replicates} replicates of {n} observations; {steps:,} steps of forward KL,"
        f" {other_steps:,} of the others."
    )
    return Result("clustering", _claims(rows, forms), {"methods": rows, "modes": modes}, note)


def observed(target: SimulatedModel, replicates: int) -> tuple[Any, np.ndarray]:
    """Data sets drawn with S = 100, `[replicates, n]`, and their true Z `[replicates, 5]`."""

    def one(key):
        a, b = jr.split(key)
        z = TRUE_SHIFT + CENTRES + SPREAD * jr.normal(a, (5,))
        return target.simulate(b, {"z": z}), z

    x, z = jax.jit(jax.vmap(one))(jr.split(jr.key(200), replicates))
    return x.astype(jnp.float32), np.asarray(z)


def network(n: int, key: Any, form: str = "mean") -> Conditional:
    """q(s, z | x).

    Means at unit variances ("mean"), or means and variances ("natural"), which start at about 1.
    """
    head = (
        heads.Gaussian(6, "mean", sd=(1.0,) * 6)
        if form == "mean"
        else heads.Gaussian(6, "diagonal")
    )
    a, b = jr.split(key)
    outputs = head.size // 6
    encoder = TwoEncoders(Pooled.make(1, outputs, a), Pooled.make(5, outputs, b))
    return Conditional(encoder, head, Scaling.none(np.zeros(n, np.float32), 6, np.float32))


_network = eqx.filter_jit(network)


def fit_forward(form: str, target: SimulatedModel, x: Any, steps: int) -> list[Conditional]:
    """One network for each data set, trained on simulations."""
    networks = [_network(x.shape[1], jr.key(100 + i), form) for i in range(len(x))]
    estimator, state = (
        FromModel(1),
        FromModel(1, held_out=100).prepare(target, networks[0], jr.key(0)),
    )

    def loss(q, _, key):
        return estimator.surrogate(ForwardKL(), target, q, state, key)[0]

    return train(
        loss, networks, x, jr.key(9), rate=harmonic(1e-3, max(1, steps // 100)), steps=steps
    )


def fit_competitors(
    form: str, target: SimulatedModel, x: Any, steps: int, draws: int, starts: int = 0
) -> dict[str, list[Conditional]]:
    """One network for each objective and data set, and `starts` of the ELBO on the first data set.

    In one program.
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
        log_p: Any = jax.vmap(target_at.log_density)(z)
        drawn = Draws(log_p, jax.vmap(at._log_prob)(z))
        return jnp.stack([o.loss(drawn) for o in objectives])[objective]

    data = (x[index], jnp.asarray(which % 3))  # the further starts are the ELBO's
    found = train(
        loss, networks, data, jr.key(9), rate=harmonic(1e-3, max(1, steps // 100)), steps=steps
    )
    names = (*COMPETITORS, "starts")
    return {
        name: [q for q, i in zip(found, which, strict=True) if i == j]
        for j, name in enumerate(names)
    }


def at_traced(target: SimulatedModel, x: Any) -> SimulatorPosterior:
    """`target.at(x)` for data that are being traced."""
    assert target.log_prior is not None
    return SimulatorPosterior(
        target.layout, None, False, target.circular, target.log_prior, target.log_likelihood, x
    )


def exact_posterior(x: np.ndarray, z: np.ndarray) -> Gaussian:
    """The posterior of (s, z) with the labels known.

    Every point belongs to the centre nearest to it.
    """
    label = np.argmin(np.abs(x[:, None] - z), axis=1)
    precision, linear = np.zeros((6, 6)), np.zeros(6)
    precision[0, 0] += SHIFT_SD**-2
    for j in range(5):
        a = np.zeros(6)
        a[0], a[1 + j] = -1.0, 1.0
        precision += np.outer(a, a) / SPREAD**2
        linear += a * CENTRES[j] / SPREAD**2
        precision[1 + j, 1 + j] += np.sum(label == j) / NOISE**2
        linear[1 + j] += np.sum(x[label == j]) / NOISE**2
    cov = np.linalg.inv(precision)
    return Gaussian.from_root(cov @ linear, np.linalg.cholesky(cov))


def _timed(function: Any, *arguments: Any) -> tuple[Any, float]:
    began = time.perf_counter()
    return function(*arguments), time.perf_counter() - began


def _is_network(value: Any) -> bool:
    return isinstance(value, Conditional)


def _gaussians(networks: list[Conditional], x: Any) -> list[Gaussian]:
    """Each network's q at its data."""
    each: list[Any] = [q.head.moments(q.eta(data)) for q, data in zip(networks, x, strict=True)]
    return [
        Gaussian.diagonal(6).moved(np.asarray(mean, float), np.asarray(sd, float))
        for mean, sd in each
    ]


def _refined(target: SimulatedModel, x: Any, start: list[Gaussian]) -> list[Gaussian]:
    """The full-rank Gaussian of the largest ELBO at each data set, by natural gradient from an
    amortised answer.
    """
    pairs = [(q, target.at(data)) for q, data in zip(start, x, strict=True)]
    return [
        fit(t, Gaussian.from_root(q.mean, np.diag(q.sd)), solver=NaturalGradient()).q
        for q, t in pairs
    ]


def _modes(method: str, form: str, found: list[Gaussian]) -> list[dict[str, Any]]:
    means = [[float(m) for m in q.mean] for q in found]
    return [
        {"method": method, "form": form, "s": s, **{f"z[{j}]": value for j, value in enumerate(z)}}
        for s, *z in means
    ]


def _row(method: str, form: str, found: list[Gaussian], x: Any, z: np.ndarray) -> dict[str, Any]:
    """The scores of the q's that one method found, each at its data set."""
    means, sds = np.array([q.mean for q in found]), np.array([q.sd for q in found])
    at = means[:, 1:]
    nearest = np.argmin(np.abs(at[:, :, None] - z[:, None, :]), axis=2)
    distance = np.abs(at - z).sum(axis=1)
    posteriors = [
        exact_posterior(np.asarray(data, np.float64), truth)
        for data, truth in zip(x, z, strict=True)
    ]
    exact = [kl(p, q) for p, q in zip(posteriors, found, strict=True)]
    least = {
        "mean": lambda p: kl(p, Gaussian.diagonal(6).moved(p.mean)),
        "natural": lambda p: kl(p, Gaussian.diagonal(6).moved(p.mean, p.sd)),
        "full": lambda p: 0.0,
    }
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
        "median KL(p || q)": float(np.median(np.array(exact, float))),
        "least KL(p || q) of the family": float(np.median([least[form](p) for p in posteriors])),
    }


def _best_bound(target: SimulatedModel, networks: list[Conditional], x: Any) -> Conditional:
    """Of several networks with unit variances the one with the largest ELBO at x."""
    means = [q.mean for q in _gaussians(networks, [x] * len(networks))]
    evaluate = jax.jit(jax.vmap(at_traced(target, x).log_density))
    noise = np.random.default_rng(0).standard_normal((200, 6))
    # the entropy is the same for all
    bounds = [float(np.mean(np.asarray(evaluate(jnp.asarray(m + noise))))) for m in means]
    return networks[int(np.argmax(bounds))]


def _claims(rows: list[dict[str, Any]], forms: tuple[str, ...]) -> list[dict[str, Any]]:
    claims = []
    for form in forms:
        by = {row["method"]: row for row in rows if row["form"] == form}
        what = f"share of replicates that forward KL orders ({form})"
        claims.append(agrees(what, SOURCE, 1.0, by["forward KL"]["ordered"], 0.0))
        claims += [
            below(
                f"share of replicates that the {m} orders ({form})", SOURCE, 0.1, by[m]["ordered"]
            )
            for m in COMPETITORS
        ]
        worst = min(by[m]["l1"] for m in COMPETITORS)
        what = (
            f"l1 distance of forward KL's modes to the truth over the least of the others ({form})"
        )
        claims.append(below(what, SOURCE, 0.5, by["forward KL"]["l1"] / worst))
    return claims


def figures(result: Result) -> dict[str, Any]:
    """Where each method puts the five modes and the shift."""
    from .drawing import COLOURS, panels

    forms = {"unit variances": ("mean",), "variances of its own": ("natural", "full")}
    with panels(1, 3, width=13.0) as (figure, axes):
        *left, right = axes[0]
        labels: list[str] = []
        for axis, (words, shown) in zip(left, forms.items(), strict=True):
            own = [r for r in result.tables["modes"] if r["form"] in shown]
            methods = list(dict.fromkeys(r["method"] for r in own))
            for i, (method, colour) in enumerate(zip(methods, COLOURS, strict=False)):
                rows = [r for r in own if r["method"] == method]
                position = np.arange(5) + 0.15 * (i - 2)
                for k, row in enumerate(rows):
                    height = [row[f"z[{j}]"] for j in range(5)]
                    axis.plot(
                        position, height, ".", color=colour, alpha=0.6, label=None if k else method
                    )
                right.plot(
                    [r["s"] for r in rows], [len(labels)] * len(rows), "o", color=colour, alpha=0.6
                )
                labels.append(f"{method}, {words}")
            axis.plot(
                np.arange(5),
                TRUE_SHIFT + CENTRES,
                "_",
                color="black",
                ms=18,
                label="mean of the truth",
            )
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


__all__ = [
    "SIZES",
    "exact_posterior",
    "figures",
    "fit_competitors",
    "fit_forward",
    "model",
    "network",
    "observed",
    "run",
]
