"""The battery of exponential families, and of products of them."""

import itertools
from typing import TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats
from jaxtyping import Float, Shaped

from .._numerics import as_key, scoped, to_device
from .._types import Array, Key, PyTree
from ..families.exponential.base import AbstractExponentialFamily
from ..families.exponential.product import Product
from .comparisons import LEAST_P, close, mean_is
from .families import check_gradients

# Draws and nodes in one number, so that one compiled program serves both; odd, as a rule that has
# its middle.
_DRAWS = 4001
_NODES = _DRAWS  # on the line: mass and entropy to 1e-6 where a density has a pole (a beta of 0.8)
_NODES_OF_A_FACTOR = 161  # of a product of two continuous factors, which has the square of them
_MOST_COUNTS = 400  # of a Poisson, whose values have no end: rates of some hundreds are not reached

_Rule: TypeAlias = tuple[Float[np.ndarray, "nodes dim"], Float[np.ndarray, "nodes"]]
"""Points and weights that integrate over the support."""


@scoped
def check_exponential_family(
    q: AbstractExponentialFamily, key: Key, *, draws: int = _DRAWS, gradients: bool = True
) -> None:
    """grad A(eta) = E[t], mass one, draws that follow the density, conversions, entropy and KL.

    A single member on the line, or with finitely many values, is checked by quadrature or
    enumeration to 1e-6; any other by its draws, to four standard errors.

    Arguments:
        q: a member, or a plate of them.
        key: of all draws.
        draws: from which the comparisons are made.
        gradients: False leaves out the comparison of pathwise with score gradients, which compiles
            for seconds where draws are gamma draws.
    """
    name, key = type(q).__name__, as_key(key)
    z, log_q = q.draw(draws, key)
    _check_draws(q, name, z, log_q)
    if not q.plate:
        nodes = _nodes(q, z, _NODES)
        if nodes is not None:
            _check_truth(q, name, *nodes, z)
    _check_conversions(q, name)
    if q.reparameterised and gradients:
        check_gradients(q, name, key, draws)
    if not q.reparameterised:
        assert q.smooth_draws_no, (
            f"{name} is not reparameterised, and does not say why (`smooth_draws_no`)."
        )
    _check_transformations(q, name, z[:2], log_q[:2])


@scoped
def check_product(q: Product, key: Key, *, draws: int = _DRAWS) -> None:
    """A product is the product of its factors: density, mass, moments, entropy, KL, draws.

    Its mass and entropy by a rule over the support of all factors, where each is on the line or has
    finitely many values, and not a plate; all else by draws. The factors themselves have the
    battery of exponential families.

    Arguments:
        q: a member.
        key: of all draws.
        draws: from which the comparisons are made.
    """
    name, key = type(q).__name__, as_key(key)
    z, log_q = q.draw(draws, key)
    _check_draws(q, name, z, log_q)
    values = q.values(z)
    parts = sum(f.log_prob_on_host(np.asarray(f.flat(values[n]))) for n, f in q.factors.items())
    close(log_q, parts, 1e-8, f"{name}: the log density is not the sum of those of the factors.")
    nodes = _nodes_of_product(q, z)
    if nodes is not None:
        _check_mass(q, name, *nodes)
    _check_transformations(q, name, z[:2], log_q[:2])


def _check_draws(
    q: AbstractExponentialFamily | Product,
    name: str,
    z: Float[np.ndarray, "n dim"],
    log_q: Float[np.ndarray, "n"],
) -> None:
    """Means over draws of the statistics, of minus log q, and of log q - log p."""
    close(
        log_q,
        q.log_prob_on_host(z),
        1e-8,
        f"{name}: `draw` and `log_prob` disagree about the density of a draw.",
    )
    found, means = _statistics(q, z), q.mean_parameters
    for (path, statistic), mean in zip(
        jax.tree.leaves_with_path(found), jax.tree.leaves(means), strict=True
    ):
        mean_is(
            statistic,
            mean,
            f"{name}: the mean of t(z) over draws is not grad A ({jax.tree_util.keystr(path)})",
        )
    entropy = np.asarray(q.entropy())
    mean_is(-log_q, entropy, f"{name}: `entropy` is not the mean of -log q")
    other = q.retract(jax.tree.map(lambda leaf: 0.1 * jnp.ones_like(leaf), to_device(q)))
    difference = log_q - other.log_prob_on_host(z)
    # `retract` gives a member of q's own class, which a union of two classes does not tell.
    divergence = q.kl(other)  # pyright: ignore[reportArgumentType]
    mean_is(difference, np.asarray(divergence), f"{name}: `kl` is not the mean of log q - log p")


def _check_truth(
    q: AbstractExponentialFamily,
    name: str,
    points: Float[np.ndarray, "nodes dim"],
    weights: Float[np.ndarray, "nodes"],
    z: Float[np.ndarray, "n dim"],
) -> None:
    """Mass, mean parameters and entropy by quadrature or enumeration.

    On the line also the distribution of the draws.
    """
    mass = _check_mass(q, name, points, weights)
    for mean, statistic in zip(q.mean_parameters, _statistics(q, points), strict=True):
        # A statistic may be infinite where there is no mass: log z at 0.
        inside = mass.reshape(-1, *[1] * (statistic.ndim - 1)) > 0
        average = np.tensordot(mass, np.where(inside, statistic, 0.0), axes=1)
        close(average, mean, 1e-5, f"{name}: grad A is {mean}, quadrature finds E[t] = {average}.")
    if q.dim == 1:
        level = np.cumsum(mass) - (0.5 * mass if q.support is not None else 0.0)
        seen = (
            np.interp(z[:, 0], points[:, 0], level)
            if q.support is not None
            else _uniform(z, points, mass)
        )
        p = scipy.stats.kstest(seen, "uniform").pvalue
        assert p > LEAST_P, f"{name}: the draws do not follow the density (KS p-value {p:.1e})."


def _check_mass(
    q: AbstractExponentialFamily | Product,
    name: str,
    points: Float[np.ndarray, "nodes dim"],
    weights: Float[np.ndarray, "nodes"],
) -> Float[np.ndarray, "nodes"]:
    """The mass at each node; together it is one, and has the entropy that q says."""
    log_q = q.log_prob_on_host(points)
    mass = np.where(np.isfinite(log_q), np.exp(log_q), 0.0) * weights
    assert abs(mass.sum() - 1) < 1e-6, f"{name}: the density has mass {mass.sum():.7f}, not 1."
    entropy = -np.sum(mass[mass > 0] * log_q[mass > 0])
    close(
        entropy,
        np.asarray(q.entropy()),
        1e-5,
        f"{name}: `entropy` is {q.entropy()}, quadrature finds {entropy}.",
    )
    return mass


def _uniform(
    z: Float[np.ndarray, "n 1"], points: Float[np.ndarray, "nodes 1"], mass: Float[np.ndarray, "_"]
) -> Float[np.ndarray, "n"]:
    """The randomised probability integral transform of whole numbers."""
    index = np.searchsorted(points[:, 0], z[:, 0])
    rng = np.random.default_rng(0)
    return np.clip(np.cumsum(mass)[index] - rng.uniform(size=len(z)) * mass[index], 0.0, 1.0)


def _check_conversions(q: AbstractExponentialFamily, name: str) -> None:
    eta, mean = q.natural, q.mean_parameters
    for made, what in (
        (type(q).from_natural(eta), "from_natural"),
        (type(q).from_mean(mean), "from_mean"),
    ):
        for a, b in zip(made.mean_parameters, mean, strict=True):
            close(a, b, 1e-9, f"{name}: `{what}` does not lead back to the same mean parameters.")
    close(np.asarray(q.kl(q)), 0.0, 1e-9, f"{name}: KL(q || q) is {q.kl(q)}, not 0.")
    assert bool(q.valid()), f"{name}: `valid` refuses a member."


def _check_transformations(
    q: AbstractExponentialFamily | Product,
    name: str,
    z: Float[np.ndarray, "2 dim"],
    expected: Float[np.ndarray, "2"],
) -> None:
    """Flattening, jit and vmap over members change nothing; no step is no move.

    Flat and shaped values are inverse.
    """
    on_device = to_device(q)
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
def _members_at(
    members: AbstractExponentialFamily | Product, z: Float[jax.Array, "members dim"]
) -> Float[jax.Array, "members"]:
    return jax.vmap(lambda q, z: q._log_prob(z))(members, z)


def _nodes(q: AbstractExponentialFamily, z: Float[np.ndarray, "n dim"], count: int) -> _Rule | None:
    """A rule of `count` nodes, or all values; None where there are too many dimensions."""
    if q.support is None:
        return _all_values(q)
    if q.dim > 1:
        return None
    u = np.linspace(-1.0, 1.0, count)
    # Of a positive value the logarithm: a density that is infinite at 0 has its mass far down.
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


def _nodes_of_product(q: Product, z: Float[np.ndarray, "n dim"]) -> _Rule | None:
    """The rules of all factors crossed; None where one has none, or is a plate."""
    values, rules = q.values(z), []
    for name, factor in q.factors.items():
        draws = np.asarray(factor.flat(values[name]))
        rule = None if factor.plate else _nodes(factor, draws, _NODES_OF_A_FACTOR)
        if rule is None:
            return None
        rules.append(rule)
    index = np.meshgrid(*[np.arange(len(weights)) for _, weights in rules], indexing="ij")
    chosen = [i.ravel() for i in index]
    points = [points[i] for (points, _), i in zip(rules, chosen, strict=True)]
    weights = [weights[i] for (_, weights), i in zip(rules, chosen, strict=True)]
    return np.concatenate(points, axis=1), np.prod(weights, axis=0)


def _all_values(q: AbstractExponentialFamily) -> _Rule:
    """Every value of a whole number, or of a chain of them."""
    states = {"Bernoulli": 2, "Poisson": _MOST_COUNTS}.get(type(q).__name__)
    count = np.shape(jax.tree.leaves(q)[0])[-1] if states is None else states
    points = np.array(list(itertools.product(range(count), repeat=q.dim)), float)
    return points, np.ones(len(points))


def _statistics(
    q: AbstractExponentialFamily | Product, z: Float[np.ndarray, "n dim"]
) -> PyTree[Shaped[np.ndarray, "n ..."]]:
    return jax.tree.map(np.asarray, _statistics_jitted(to_device(q), jnp.asarray(z)))


@eqx.filter_jit
def _statistics_jitted(
    q: AbstractExponentialFamily | Product, z: Float[Array, "n dim"]
) -> PyTree[Shaped[jax.Array, "n ..."]]:
    if isinstance(q, Product):  # whose statistics are those of its values, by factor
        return jax.vmap(lambda point: q.statistics(q.values(point)))(z)
    return jax.vmap(q.statistics)(z)
