"""The battery of exponential families."""

import itertools
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats

from .._numerics import as_key, scoped, to_device
from .comparisons import close, mean_is
from .families import _check_gradients

_NODES = 4001


@scoped
def check_exponential_family(
    q: Any, key: Any, *, draws: int = 4000, gradients: bool = True
) -> None:
    """The identities of an exponential family, grad A(eta) = E[t] first.

    Mass one, draws that follow the density, both conversions, entropy, KL and transformations.
    A single member on the line, or with finitely many values, is checked by quadrature or
    enumeration to 1e-6; any other by its draws, to four standard errors. `gradients=False` leaves
    out the comparison of pathwise with score gradients, which compiles for seconds where draws are
    gamma draws.
    """
    name, key = type(q).__name__, as_key(key)
    z, log_q = q.draw(draws, key)
    close(
        log_q,
        q.log_prob_on_host(z),
        1e-8,
        f"{name}: `draw` and `log_prob` disagree about the density of a draw.",
    )
    _check_draws(q, name, z, log_q)
    nodes = _nodes(q, z)
    if nodes is not None:
        _check_truth(q, name, *nodes, z)
    _check_conversions(q, name)
    if q.reparameterised and gradients:
        _check_gradients(q, name, key, draws)
    if not q.reparameterised:
        assert q.smooth_draws_no, (
            f"{name} is not reparameterised, and does not say why (`smooth_draws_no`)."
        )
    _check_transformations(q, name, z[:2])


def _check_draws(q: Any, name: str, z: np.ndarray, log_q: np.ndarray) -> None:
    statistics = _statistics(q, z)
    for field, mean in zip(q.mean_parameters._fields, q.mean_parameters, strict=True):
        mean_is(
            getattr(statistics, field),
            mean,
            f"{name}: the mean of t(z) over draws is not grad A ({field})",
        )
    mean_is(-log_q, q.entropy(), f"{name}: `entropy` is not the mean of -log q")
    other = q.retract(jax.tree.map(lambda leaf: 0.1 * jnp.ones_like(leaf), to_device(q)))
    difference = log_q - other.log_prob_on_host(z)
    mean_is(difference, q.kl(other), f"{name}: `kl` is not the mean of log q - log p")


def _check_truth(q: Any, name: str, points: np.ndarray, weights: np.ndarray, z: np.ndarray) -> None:
    """Mass, mean parameters and entropy by quadrature or enumeration.

    On the line also the distribution of the draws.
    """
    log_q = q.log_prob_on_host(points)
    mass = np.where(np.isfinite(log_q), np.exp(log_q), 0.0) * weights
    assert abs(mass.sum() - 1) < 1e-6, f"{name}: the density has mass {mass.sum():.7f}, not 1."
    for mean, statistic in zip(q.mean_parameters, _statistics(q, points), strict=True):
        average = np.tensordot(
            mass,
            np.where(mass.reshape(-1, *[1] * (statistic.ndim - 1)) > 0, statistic, 0.0),
            axes=1,
        )
        close(average, mean, 1e-5, f"{name}: grad A is {mean}, quadrature finds E[t] = {average}.")
    entropy = -np.sum(mass[mass > 0] * log_q[mass > 0])
    close(
        entropy,
        q.entropy(),
        1e-5,
        f"{name}: `entropy` is {q.entropy()}, quadrature finds {entropy}.",
    )
    if q.dim == 1:
        level = np.cumsum(mass) - (0.5 * mass if q.support is not None else 0.0)
        seen = (
            np.interp(z[:, 0], points[:, 0], level)
            if q.support is not None
            else _uniform(z, points, mass)
        )
        p = scipy.stats.kstest(seen, "uniform").pvalue
        assert p > 1e-4, f"{name}: the draws do not follow the density (KS p-value {p:.1e})."


def _uniform(z: np.ndarray, points: np.ndarray, mass: np.ndarray) -> np.ndarray:
    """The randomised probability integral transform of whole numbers."""
    index = np.searchsorted(points[:, 0], z[:, 0])
    rng = np.random.default_rng(0)
    return np.clip(np.cumsum(mass)[index] - rng.uniform(size=len(z)) * mass[index], 0.0, 1.0)


def _check_conversions(q: Any, name: str) -> None:
    eta, mean = q.natural, q.mean_parameters
    for made, what in (
        (type(q).from_natural(eta), "from_natural"),
        (type(q).from_mean(mean), "from_mean"),
    ):
        for a, b in zip(made.mean_parameters, mean, strict=True):
            close(a, b, 1e-9, f"{name}: `{what}` does not lead back to the same mean parameters.")
    close(q.kl(q), 0.0, 1e-9, f"{name}: KL(q || q) is {q.kl(q)}, not 0.")
    assert bool(q.valid()), f"{name}: `valid` refuses a member."


def _check_transformations(q: Any, name: str, z: np.ndarray) -> None:
    """Flattening, jit and vmap over members change nothing; no step is no move.

    Flat and shaped values are inverse.
    """
    expected, on_device = q.log_prob_on_host(z), to_device(q)
    leaves, structure = jax.tree.flatten(on_device)
    again = jax.tree.unflatten(structure, leaves)
    rest = again.retract(jax.tree.map(jnp.zeros_like, again))
    members = jax.tree.map(lambda a, b: jnp.stack([a, b]), again, rest)
    close(
        _members_at(members, jnp.asarray(z)),
        expected,
        1e-10,
        f"{name}: vmap over members, or a zero step, moves q.",
    )
    close(q.flat(q.values(z)), z, 0.0, f"{name}: `flat` is not the inverse of `values`.")


@jax.jit
def _members_at(members: Any, z: jax.Array) -> jax.Array:
    return jax.vmap(lambda q, z: q._log_prob(z))(members, z)


def _nodes(q: Any, z: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """Points `[M, dim]` and weights that integrate, or all values.

    None where there are too many dimensions.
    """
    if q.plate:
        return None
    if q.support is None:
        return _all_values(q)
    if q.dim > 1:
        return None
    u = np.linspace(-1.0, 1.0, _NODES)
    low, high = (
        (np.log(z.min()) - 8.0, np.log(z.max()) + 2.0) if q.support == "positive" else (0.0, 0.0)
    )
    lines = {
        "positive": lambda: np.exp(low + (high - low) * (u + 1) / 2),
        "unit_interval": lambda: 1 / (1 + np.exp(-40.0 * u)),
        "real": lambda: z.mean() + 12 * z.std() * u,
        "circular": lambda: np.pi * u,
    }
    slopes = {
        "positive": lambda x: x * (high - low) / 2,
        "unit_interval": lambda x: 40.0 * x * (1 - x),
        "real": lambda x: np.full_like(x, 12 * z.std()),
        "circular": lambda x: np.full_like(x, np.pi),
    }
    if q.support not in lines:
        return None
    points = lines[q.support]()
    weights = slopes[q.support](points) * (u[1] - u[0])
    weights[[0, -1]] *= 0.5
    return points[:, None], weights


def _all_values(q: Any) -> tuple[np.ndarray, np.ndarray]:
    """Every value of a whole number, or of a chain of them."""
    states = {"Bernoulli": 2, "Poisson": 400}.get(type(q).__name__)
    count = np.shape(jax.tree.leaves(q)[0])[-1] if states is None else states
    points = np.array(list(itertools.product(range(count), repeat=q.dim)), float)
    return points, np.ones(len(points))


def _statistics(q: Any, z: np.ndarray) -> Any:
    return jax.tree.map(np.asarray, _statistics_jitted(to_device(q), jnp.asarray(z)))


@eqx.filter_jit
def _statistics_jitted(q: Any, z: jax.Array) -> Any:
    return jax.vmap(q.statistics)(z)
