"""The battery of families."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import scipy.stats

from .._numerics import as_key, scoped, to_device, to_host
from .comparisons import close, mean_is, means_agree, refuses, rows


@scoped
def check_family(q: Any, key: Any, *, draws: int = 4000) -> None:
    """The density integrates to one and belongs to the draws.

    Gradients, transformations and steps are consistent.

    Quadrature and the probability integral transform need dim <= 2; the rest works in any
    dimension.
    """
    name, key = type(q).__name__, as_key(key)
    z, log_q = q.draw(draws, key)
    again = np.asarray(q.log_prob(z))
    close(
        log_q, again, 1e-8, f"{name}: `draw` and `log_prob` disagree about the density of a draw."
    )
    independent = np.asarray(q.sample(jr.fold_in(key, 1), shape=(draws,)))
    if q.dim <= 2:
        _check_quadrature(q, name, {"draw": z[: draws // 2], "sample": independent})
    _check_stein(q, name, independent)
    if q.entropy() is not None:
        mean_is(-log_q[: draws // 2], q.entropy(), f"{name}: `entropy` is not the mean of -log q")
    if q.reparameterised:
        _check_gradients(q, name, jr.fold_in(key, 2), draws)
    _check_round_trips(q, name, independent[:3])
    _check_steps(q, name, independent[0])


def _check_quadrature(q: Any, name: str, samples: dict[str, np.ndarray]) -> None:
    """Mass one, and draws of every coordinate that follow its marginal (Kolmogorov-Smirnov)."""
    points, weights, axes = _grid(q, next(iter(samples.values())))
    density = jax.jit(jax.vmap(to_device(q, q.dtype)._log_prob))
    mass = np.exp(np.asarray(density(jnp.asarray(points)))) * weights
    total = mass.sum()
    assert abs(total - 1) < 1e-3, f"{name}: the density integrates to {total:.5f}, not to 1."
    mass = mass.reshape([len(axis) for axis in axes])
    for i, axis in enumerate(axes):
        marginal = mass.sum(axis=tuple(j for j in range(q.dim) if j != i))
        distribution = np.cumsum(marginal) - 0.5 * marginal
        for method, z in samples.items():
            p = scipy.stats.kstest(np.interp(z[:, i], axis, distribution), "uniform").pvalue
            assert p > 1e-4, (
                f"{name}: `{method}` does not follow the density in coordinate {i} (KS p-value"
                f" {p:.1e})."
            )


def _grid(
    q: Any, z: np.ndarray, size: int = 241
) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    """Trapezoid nodes and weights, equidistant in asinh of the standardised coordinate.

    They reach 1,500 sds far.
    """
    t = np.linspace(-8.0, 8.0, size)
    low, centre, high = np.quantile(z, [0.25, 0.5, 0.75], axis=0)
    axes = [c + s * np.sinh(t) for c, s in zip(centre, high - low, strict=True)]
    steps = [s * np.cosh(t) * (t[1] - t[0]) for s in high - low]
    points = np.stack([m.ravel() for m in np.meshgrid(*axes, indexing="ij")], axis=1)
    weights = np.prod([m.ravel() for m in np.meshgrid(*steps, indexing="ij")], axis=0)
    return points, weights, axes


def _check_stein(q: Any, name: str, z: np.ndarray) -> None:
    """E_q[s] = 0 and E_q[s (z - c)'] = -I for the score s.

    Identities that tie the draws to the density in any dimension.
    """
    score = jax.jit(jax.vmap(jax.grad(to_device(q, q.dtype)._log_prob)))
    scores = np.asarray(score(jnp.asarray(z)))
    mean_is(scores, 0.0, f"{name}: the mean score of the draws is not zero")
    products = scores[:, :, None] * (z - np.median(z, axis=0))[:, None, :]
    mean_is(
        products,
        -np.eye(q.dim),
        f"{name}: draws and density disagree (Stein's identity, second order)",
    )


def _check_gradients(q: Any, name: str, key: jax.Array, draws: int) -> None:
    """The gradient of E_q[log(1 + |z - c|^2)] in lambda, through the draws and the density."""
    q = to_device(q, q.dtype)
    centre = q._sample(key) + 0.5

    def f(z):
        return jnp.log1p(jnp.sum((z - centre) ** 2))

    def through_draws(k):
        return eqx.filter_grad(lambda q: f(q._sample(k)))(q)

    def through_density(k):
        z = q._sample(k)
        return f(z), eqx.filter_grad(lambda q: q._log_prob(z))(q)

    first, second = jr.split(key)
    pathwise = rows(draws, jax.jit(jax.vmap(through_draws))(jr.split(first, draws)))
    values, scores = jax.jit(jax.vmap(through_density))(jr.split(second, draws))
    score = rows(draws, scores) * np.asarray(values - values.mean())[:, None]
    means_agree(
        pathwise,
        score,
        f"{name}: pathwise and score-function gradients of one expectation disagree",
    )


def _check_round_trips(q: Any, name: str, z: np.ndarray) -> None:
    """Flattening, host and device, jit and vmap change nothing; a wrong shape is refused."""
    one, many = eqx.filter_jit(lambda q, z: q._log_prob(z)), jnp.asarray(z)
    expected = np.asarray(q.log_prob(z))
    leaves, structure = jax.tree.flatten(q)
    on_device = to_device(q, q.dtype)
    trips = {
        "flattening": jax.tree.unflatten(structure, leaves),
        "moving to the device": on_device,
        "moving to the host": to_host(on_device),
    }
    for trip, other in trips.items():
        close(
            one(other, many[0]), expected[0], 1e-10, f"{name}: {trip} (or jit) changes the density."
        )
    arrays, rest = eqx.partition(on_device, eqx.is_array)
    stacked = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), arrays)
    mapped = jax.vmap(lambda a, z: one(eqx.combine(a, rest), z))(stacked, many[:2])
    close(mapped, expected[:2], 1e-10, f"{name}: vmap over members changes the density.")
    assert q.sample(0, shape=(2, 3)).shape == (
        2,
        3,
        q.dim,
    ), f"{name}: `sample(shape=(2, 3))` has the wrong shape."
    refuses(
        lambda: q.log_prob(np.zeros(q.dim + 1)),
        ValueError,
        f"{name}: `log_prob` accepts a point of the wrong dimension.",
    )


def _check_steps(q: Any, name: str, z: np.ndarray) -> None:
    """No step is no move, and what is monitored comes with a unit for each value."""
    q = to_device(q, q.dtype)
    parameters = eqx.filter(q, eqx.is_inexact_array)
    rest = jax.tree.map(jnp.zeros_like, parameters)
    close(
        q.retract(rest).log_prob(z),
        q.log_prob(z),
        1e-10,
        f"{name}: `retract` of a zero step moves q.",
    )
    values, units = q.monitored()
    assert values.shape == units.shape == (len(values), values.size // len(values)), (
        f"{name}: `monitored` must give two arrays [groups, m], got shapes {values.shape} and"
        f" {units.shape}."
    )
