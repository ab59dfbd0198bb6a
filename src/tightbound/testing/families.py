"""The battery of families."""

from typing import TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import scipy.stats
from jaxtyping import Float

from .._numerics import as_key, scoped, to_device, to_host
from .._types import Array, Key
from ..families.base import AbstractFamily
from .comparisons import LEAST_P, close, mean_is, means_agree, refuses, rows

_Axes: TypeAlias = list[Float[np.ndarray, "nodes"]]


@scoped
def check_family(q: AbstractFamily, key: Key, *, draws: int = 4000) -> None:
    """The density integrates to one and belongs to the draws; gradients and steps are consistent.

    For families with a density on R^dim. Quadrature and the probability integral transform need dim
    <= 2; the rest works in any dimension.

    Arguments:
        q: a member.
        key: of all draws.
        draws: from which the comparisons are made.
    """
    name, key = type(q).__name__, as_key(key)
    z, log_q = q.draw(draws, key)
    again, _ = densities(q, z)
    close(
        log_q, again, 1e-8, f"{name}: `draw` and `log_prob` disagree about the density of a draw."
    )
    independent = independent_draws(q, jr.fold_in(key, 1), draws)
    if q.dim <= 2:
        # Half of them: families that stratify pair the others with these
        check_quadrature(q, name, {"draw": z[: draws // 2], "sample": independent})
    _check_stein(q, name, independent)
    entropy = q.entropy()
    if entropy is not None:
        mean_is(
            -log_q[: draws // 2],
            np.asarray(entropy),
            f"{name}: `entropy` is not the mean of -log q",
        )
    if q.reparameterised:
        check_gradients(q, name, jr.fold_in(key, 2), draws)
    _check_public(q, name, jr.fold_in(key, 3), independent[:3])
    _check_round_trips(q, name, independent[:3])
    _check_steps(q, name, independent[:3])


# Points that the compiled densities take at once: one program serves all checks of a family, as
# compilation is most of what they take.
_CHUNK = 4096


def densities(
    q: AbstractFamily, z: Float[np.ndarray, "n dim"]
) -> tuple[Float[np.ndarray, "n"], Float[np.ndarray, "n dim"]]:
    """log q and its gradient in z at every point."""
    padded = np.concatenate([z, np.repeat(z[-1:], -len(z) % _CHUNK, axis=0)])
    on_device = to_device(q, q.dtype)
    parts = [
        _densities(on_device, jnp.asarray(padded[start : start + _CHUNK]))
        for start in range(0, len(padded), _CHUNK)
    ]
    values, scores = (np.concatenate([np.asarray(p[i]) for p in parts])[: len(z)] for i in (0, 1))
    return values, scores


@eqx.filter_jit
def _densities(
    q: AbstractFamily, z: Float[jax.Array, "n dim"]
) -> tuple[Float[jax.Array, "n"], Float[jax.Array, "n dim"]]:
    return jax.vmap(jax.value_and_grad(q._log_prob))(z)


def independent_draws(q: AbstractFamily, key: jax.Array, n: int) -> Float[np.ndarray, "n dim"]:
    """`n` draws, each with a key of its own."""
    return np.asarray(_samples(to_device(q, q.dtype), jr.split(key, n)))


@eqx.filter_jit
def _samples(q: AbstractFamily, keys: jax.Array) -> Float[Array, "n dim"]:
    return jax.vmap(q._sample)(keys)


def check_quadrature(
    q: AbstractFamily, name: str, samples: dict[str, Float[np.ndarray, "_ dim"]]
) -> None:
    """Mass one, and draws that follow the marginal distribution of every coordinate.

    The latter by Kolmogorov and Smirnov's test; `samples` by the name of what made them.
    """
    points, weights, axes = _grid(q, next(iter(samples.values())))
    mass = np.exp(densities(q, points)[0]) * weights
    total = mass.sum()
    assert abs(total - 1) < 1e-3, f"{name}: the density integrates to {total:.5f}, not to 1."
    mass = mass.reshape([len(axis) for axis in axes])
    for i, axis in enumerate(axes):
        marginal = mass.sum(axis=tuple(j for j in range(q.dim) if j != i))
        distribution = np.cumsum(marginal) - 0.5 * marginal
        for method, z in samples.items():
            p = scipy.stats.kstest(np.interp(z[:, i], axis, distribution), "uniform").pvalue
            assert p > LEAST_P, (
                f"{name}: `{method}` does not follow the density in coordinate {i} (KS p-value"
                f" {p:.1e})."
            )


def _grid(
    q: AbstractFamily, z: Float[np.ndarray, "n dim"], size: int = 241
) -> tuple[Float[np.ndarray, "points dim"], Float[np.ndarray, "points"], _Axes]:
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


def _check_stein(q: AbstractFamily, name: str, z: Float[np.ndarray, "n dim"]) -> None:
    """E_q[s] = 0 and E_q[s (z - c)'] = -I for the score s.

    Identities that tie the draws to the density in any dimension.
    """
    _, scores = densities(q, z)
    mean_is(scores, 0.0, f"{name}: the mean score of the draws is not zero")
    products = scores[:, :, None] * (z - np.median(z, axis=0))[:, None, :]
    mean_is(
        products,
        -np.eye(q.dim),
        f"{name}: draws and density disagree (Stein's identity, second order)",
    )


def check_gradients(q: AbstractFamily, name: str, key: jax.Array, draws: int) -> None:
    """The gradient in lambda of E_q[log(1 + |z - c|^2)], through draws and through the density."""
    q = to_device(q, q.dtype)
    centre = q._sample(key) + 0.5

    def f(z: Float[Array, "dim"]) -> Float[Array, ""]:
        return jnp.log1p(jnp.sum((z - centre) ** 2))

    def both(
        first: jax.Array, second: jax.Array
    ) -> tuple[AbstractFamily, Float[Array, ""], AbstractFamily]:
        z = q._sample(second)
        through_draws = eqx.filter_grad(lambda q: f(q._sample(first)))(q)
        return through_draws, f(z), eqx.filter_grad(lambda q: q._log_prob(z))(q)

    keys = [jr.split(k, draws) for k in jr.split(key)]
    pathwise, values, scores = jax.jit(jax.vmap(both))(*keys)
    score = rows(draws, scores) * np.asarray(values - values.mean())[:, None]
    means_agree(
        rows(draws, pathwise),
        score,
        f"{name}: pathwise and score-function gradients of one expectation disagree",
    )


def _check_public(
    q: AbstractFamily, name: str, key: jax.Array, z: Float[np.ndarray, "3 dim"]
) -> None:
    """What users call is what is compiled; a wrong shape is refused."""
    log_q, drawn, expected = _public(to_device(q, q.dtype), jnp.asarray(z), key)
    close(
        log_q,
        densities(q, z)[0],
        1e-10,
        f"{name}: `log_prob` is another density than `_log_prob` at each point.",
    )
    assert drawn.shape == (2, 3, q.dim), f"{name}: `sample(shape=(2, 3))` has the wrong shape."
    close(
        drawn,
        expected.reshape(drawn.shape),
        1e-10,
        f"{name}: `sample` makes other draws than `_sample` with each of its keys.",
    )
    refuses(
        lambda: q.log_prob(np.zeros(q.dim + 1)),
        ValueError,
        f"{name}: `log_prob` accepts a point of the wrong dimension.",
    )


# Under jit, although users call them without: one by one their operations compile for seconds.
@eqx.filter_jit
def _public(
    q: AbstractFamily, z: Float[jax.Array, "n dim"], key: jax.Array
) -> tuple[Float[Array, "n"], Float[Array, "2 3 dim"], Float[Array, "6 dim"]]:
    return q.log_prob(z), q.sample(key, shape=(2, 3)), jax.vmap(q._sample)(jr.split(key, 6))


def _check_round_trips(q: AbstractFamily, name: str, z: Float[np.ndarray, "3 dim"]) -> None:
    """Flattening, host and device, and vmap over members change nothing."""
    expected, _ = densities(q, z)
    leaves, structure = jax.tree.flatten(q)
    on_device = to_device(q, q.dtype)
    trips = {
        "flattening": jax.tree.unflatten(structure, leaves),
        "moving to the device": on_device,
        "moving to the host": to_host(on_device),
    }
    for trip, other in trips.items():
        close(densities(other, z)[0], expected, 1e-10, f"{name}: {trip} changes the density.")
    arrays, rest = eqx.partition(on_device, eqx.is_array)
    members = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf, leaf]), arrays)
    mapped = jax.jit(jax.vmap(lambda a, z: eqx.combine(a, rest)._log_prob(z)))(members, z)
    close(mapped, expected, 1e-10, f"{name}: vmap over members changes the density.")


def _check_steps(q: AbstractFamily, name: str, z: Float[np.ndarray, "3 dim"]) -> None:
    """No step is no move, and what is monitored comes with a unit for each value."""
    on_device = to_device(q, q.dtype)
    rest = jax.tree.map(jnp.zeros_like, eqx.filter(on_device, eqx.is_inexact_array))
    close(
        densities(on_device.retract(rest), z)[0],
        densities(q, z)[0],
        1e-10,
        f"{name}: `retract` of a zero step moves q.",
    )
    values, units = on_device.monitored()
    assert values.shape == units.shape == (len(values), values.size // len(values)), (
        f"{name}: `monitored` must give two arrays [groups, m], got shapes {values.shape} and"
        f" {units.shape}."
    )
