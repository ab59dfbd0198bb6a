"""The one rule for a product of exponential-family factors, by autodiff from one function.

    eta_d <- (1 - rho) eta_d + rho d/dm_d E_q[log p - log h_d]

(Khan & Rue 2023, eq. 6; Hoffman et al. 2013, eqs. 22-30). With rho = 1 and a conditionally
conjugate model it is coordinate ascent; with minibatches and a decreasing rho stochastic
variational inference; else a damped natural-gradient step. Everything here is a pure function for
use under jit.
"""

from typing import TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Bool, Float

from .._types import Array, PyTree, Scalar
from ..families.base import AbstractFamily
from ..families.exponential.base import AbstractExponentialFamily, inner, rebuilt
from ..families.exponential.product import Product
from ..results import PairingError
from ..targets.base import Conjugate
from ..targets.conjugate.base import AbstractConjugateTarget, hidden_factors

OF_TOL = 0.1
"""Share of `tol` that the way still to go may amount to where factors count as settled."""

_AFFINE = 1e-7  # relative difference of two slopes that counts as rounding

Moments: TypeAlias = dict[str, PyTree]
"""Mean parameters by factor, each with the axes of its plate in front."""


def moments_of(q: Product) -> Moments:
    """Mean parameters by factor."""
    return {name: factor.each(lambda f: f._mean()) for name, factor in q.factors.items()}


def best_natural(
    target: Conjugate,
    q: Product,
    name: str,
    moments: Moments,
    rows: PyTree = None,
    scale: Scalar = 1.0,
) -> PyTree:
    """eta* = d/dm_d E_q[log p - log h_d].

    The natural parameters that the rule moves the factor `name` towards.

    Arguments:
        target: whose expected log joint.
        q: all factors.
        name: of the factor that moves.
        moments: mean parameters of all factors.
        rows: some rows of data; None for all of them.
        scale: N / B where B of N rows are given.
    """
    factor = q.factors[name]

    def of_mean(mean: PyTree) -> Float[Array, ""]:
        base = factor.each(lambda f, m: f._expected_log_base(m), mean)
        return target.expected_log_joint({**moments, name: mean}, rows, scale) - jnp.sum(base)

    return factor.each(lambda f, eta: f._cleaned(eta), jax.grad(of_mean)(moments[name]))


def moved(q: Product, name: str, towards: PyTree, rho: Scalar = 1.0) -> Product:
    """q after the rule's step of size rho in one factor."""
    factor = q.factors[name]
    # A whole step skips the average, which would round.
    if not (isinstance(rho, float) and rho == 1.0):
        towards = jax.tree.map(
            lambda new, old: rho * new + (1.0 - rho) * old,
            towards,
            factor.each(lambda f: f._natural()),
        )
    new = factor.each(lambda f, eta: f._of_natural(eta), towards)
    return rebuilt(q, factors={**q.factors, name: new})


def sweep(
    target: Conjugate,
    q: Product,
    names: tuple[str, ...],
    rows: PyTree = None,
    scale: Scalar = 1.0,
    rho: Scalar = 1.0,
) -> Product:
    """q after one step in each of the factors `names`, one after the other.

    Each sees the moments of those that moved before it, which is what makes the ELBO rise.
    """
    moments = moments_of(q)
    for name in names:
        q = moved(q, name, best_natural(target, q, name, moments, rows, scale), rho)
        moments = {**moments, name: q.factors[name].each(lambda f: f._mean())}
    return q


def elbo(
    target: Conjugate, q: Product, rows: PyTree = None, scale: Scalar = 1.0
) -> Float[Array, ""]:
    """E_q[log p] + entropy, exact, in nats.

    On B of N rows with scale = N/B an unbiased estimate of it.
    """
    entropies = {name: jnp.sum(f.each(lambda f: f._entropy())) for name, f in q.factors.items()}
    entropy = sum(
        (scale * e if name in q.local else e for name, e in entropies.items()), jnp.zeros(())
    )
    return target.expected_log_joint(moments_of(q), rows, scale) + entropy


def distance(new: Product, old: Product) -> Float[Array, ""]:
    """The largest move of a member, as sqrt(2 KL(new || old)).

    A move of a Gaussian's mean by c sds counts c.
    """
    # Rounding may leave a KL just below zero, whose root would be NaN.
    kls = [jnp.max(new.factors[name].kls(old.factors[name])) for name in new.factors]
    return jnp.sqrt(2.0 * jnp.maximum(jnp.max(jnp.stack(kls)), 0.0))


def valid(q: Product) -> Bool[jax.Array, ""]:
    """Whether every factor's parameters are inside their domain."""
    return jnp.all(
        jnp.stack([jnp.all(factor.each(lambda f: f._valid())) for factor in q.factors.values()])
    )


def order(q: Product) -> tuple[str, ...]:
    """Shown factors first, then the hidden ones: a start is best given as responsibilities."""
    hidden = hidden_factors(q)
    return (*(name for name in q.factors if name not in hidden), *hidden)


@eqx.filter_jit
def swept(
    target: Conjugate, q: Product
) -> tuple[Product, Float[Array, ""], Float[Array, ""], Bool[jax.Array, ""]]:
    """(q, its ELBO, largest move in sds, whether it is inside its domain) after one sweep.

    One compiled program for the search and for its start.
    """
    new = sweep(target, q, order(q))
    return new, elbo(target, new), distance(new, q), valid(new)


def check_product(solver: str, target: AbstractConjugateTarget, q: AbstractFamily) -> Product:
    """q, which is a product of the target's own factors, by name.

    Raises:
        PairingError: it is not; the sentence names the factor that differs.
    """
    if not isinstance(q, Product):
        raise PairingError(
            f"{solver} moves a tb.families.Product of named factors, got {type(q).__name__}; leave"
            " `q` out, or start from target.start(key)."
        )
    expected = target.family
    for name, factor in expected.factors.items():
        given = q.factors.get(name)
        same = given is not None and type(given) is type(factor)
        if given is None or not same or _shape(given) != _shape(factor):
            got = "is missing" if given is None else f"is {_described(given)}"
            raise PairingError(
                f"{solver}: the factor {name!r} of `q` {got}, but the target needs"
                f" {_described(factor)}; start from target.start(key), or an earlier `fit.q`."
            )
    if set(q.factors) != set(expected.factors) or set(q.local) != set(expected.local):
        raise PairingError(
            f"{solver}: `q` has the factors {', '.join(q.factors)} (local:"
            f" {', '.join(q.local) or 'none'}), the target {', '.join(expected.factors)} (local:"
            f" {', '.join(expected.local) or 'none'})."
        )
    return q


def curved_factors(
    target: Conjugate, q: Product, key: jax.Array, rows: PyTree = None, scale: float = 1.0
) -> list[str]:
    """The factors in whose mean parameters the expected log joint is not affine.

    Conjugacy is tested, not declared: at two random members of a factor's family the derivative
    along one random direction must be the same number.

    Raises:
        PairingError: the expected log joint is not finite somewhere.
    """
    found = _slopes(target, q, key, rows, scale)
    slopes = {name: np.asarray(pair) for name, pair in found.items()}
    bad = [name for name, pair in slopes.items() if not np.all(np.isfinite(pair))]
    if bad:
        raise PairingError(
            f"The expected log joint is not finite at moments of the factor {bad[0]!r} (or its"
            " derivative is not); it must be finite at all moments that a member of the factor's"
            " family can have."
        )
    return [name for name, (a, b, size) in slopes.items() if abs(a - b) > _AFFINE * size]


@eqx.filter_jit
def _slopes(
    target: Conjugate, q: Product, key: jax.Array, rows: PyTree, scale: float
) -> dict[str, Float[jax.Array, "3"]]:
    """By factor: the two slopes along one direction, and the size of the terms of their sums.

    Without the size, the rounding of large terms that cancel would pass for a curve.
    """
    moments, found = moments_of(q), {}
    for i, (name, factor) in enumerate(q.factors.items()):

        def mean_elsewhere(k: jax.Array, factor: AbstractExponentialFamily = factor) -> PyTree:
            return _elsewhere(factor, k).each(lambda f: f._mean())

        def gradient(mean: PyTree, name: str = name) -> PyTree:
            def of_mean(mean: PyTree) -> Float[Array, ""]:
                return target.expected_log_joint({**moments, name: mean}, rows, scale)

            return jax.grad(of_mean)(mean)

        means = jax.vmap(mean_elsewhere)(jr.split(jr.fold_in(key, i), 3))
        direction = jax.tree.map(lambda leaf: leaf[2] - leaf[0], means)
        first, second = (
            jax.tree.map(lambda leaf, j=j: leaf[j], jax.vmap(gradient)(means)) for j in (0, 1)
        )
        size = inner(jax.tree.map(jnp.abs, first), jax.tree.map(jnp.abs, direction))
        found[name] = jnp.stack([inner(first, direction), inner(second, direction), size])
    return found


def _elsewhere(factor: AbstractExponentialFamily, key: jax.Array) -> AbstractExponentialFamily:
    """A random member of the same family not far from `factor`."""
    leaves, structure = jax.tree.flatten(factor)
    keys = jr.split(key, len(leaves))
    steps = [
        0.5 * jr.normal(k, jnp.shape(leaf), leaf.dtype)
        for k, leaf in zip(keys, leaves, strict=True)
    ]
    return factor.retract(jax.tree.unflatten(structure, steps))


def _shape(factor: AbstractExponentialFamily) -> tuple[object, object]:
    return factor.plate, factor.event


def _described(factor: AbstractExponentialFamily) -> str:
    return f"{type(factor).__name__} with plate {factor.plate} and values of shape {factor.event}"
