"""Conjugacy found in a NumPyro model.

Which family each site has, and the expected log joint, from the model alone.
"""

import math
from typing import TypeAlias, cast, final

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Bool, Float, Int

from ..._numerics import to_host
from ..._types import Array, Key, PyTree, Scalar
from ...families.exponential.base import AbstractExponentialFamily
from ...families.exponential.product import Product
from ...results import PairingError
from ..layout import Block, Layout
from ..numpyro_model import AbstractNumPyroTarget
from ..numpyro_program import Values
from ..support import describe
from .affine import CANDIDATES, Anchors, anchors_around, first_member
from .base import AbstractConjugateTarget

Factors: TypeAlias = dict[str, AbstractExponentialFamily]
"""By site: a member of its family."""

_AFFINE = 1e-8  # relative error of an affine prediction that counts as rounding
# Of one site's log probability at all anchors of the sites that it depends on
_MOST_NUMBERS = 20_000_000
# Elements of a term times members of a factor, when it is found out which depends on which
_MOST_PAIRS = 20_000_000


class Term(eqx.Module):
    """The log probability of one site at the anchors of the factors that it depends on.

    Attributes:
        table: one axis for each factor and one for the elements.
        members: for each factor the member that each element depends on.
        factors: their names.
        site: whose log probability it is.
    """

    table: Float[Array, "*anchors elements"]
    members: tuple[Int[Array, "elements"], ...]
    factors: tuple[str, ...] = eqx.field(static=True)
    site: str = eqx.field(static=True)

    def expected(self, weights: dict[str, Float[jax.Array, "_ _"]]) -> Float[jax.Array, ""]:
        """The sum of its elements' expectations."""
        out = jnp.asarray(self.table)
        for name, member in zip(self.factors, self.members, strict=True):
            weight = weights[name][:, member]
            out = jnp.sum(
                out * weight.reshape((weight.shape[0], *[1] * (out.ndim - 2), weight.shape[1])),
                axis=0,
            )
        return jnp.sum(out)


@final
class FoundModel(AbstractConjugateTarget):
    """The conjugate form of a NumPyro model, found by `tb.solvers.CoordinateAscent`.

    Nobody makes one by hand. log p is a sum of sites' log probabilities, each affine in the
    statistics of each latent site that it depends on. So its expectation is a weighted sum of its
    values at fixed points, with weights affine in the moments (see `affine.py`).
    """

    family: Product
    layout: Layout
    anchors: dict[str, Anchors]
    terms: tuple[Term, ...]

    def expected_log_joint(
        self, moments: PyTree, rows: PyTree = None, scale: Scalar = 1.0
    ) -> Float[Array, ""]:
        weights = {name: self.anchors[name].weights(moments[name]) for name in self.anchors}
        return sum((term.expected(weights) for term in self.terms), jnp.zeros(()))

    def start(self, key: Key) -> Product:
        return self.family


def find(target: AbstractNumPyroTarget) -> FoundModel:
    """The conjugate form of a NumPyro model, tabulated around a first guess; call inside `x64()`.

    Raises:
        PairingError: the model is not conjugate; the message says in which site, and why.
    """
    return tabulated(target, _families(target))


def _families(target: AbstractNumPyroTarget) -> Factors:
    """For each site the first family in whose statistics every term is affine."""
    if target.live:
        raise _refusal(target.live[0], "its support is computed in the model")
    chosen = {block.name: _candidates(block)[0] for block in target.layout.blocks}
    # One site at a time, the others at their first candidates: that a term is affine in one site's
    # statistics does not depend on the families of the others.
    for block in target.layout.blocks:
        reasons = []
        for member in _candidates(block):
            trial = {**chosen, block.name: member}
            reason = _reason_against(target, trial, block.name)
            if reason is None:
                chosen = trial
                break
            reasons.append(reason)
        else:
            raise _refusal(block.name, "; ".join(dict.fromkeys(reasons)))
    return chosen


def _refusal(site: str, reason: str) -> PairingError:
    return PairingError(
        f"CoordinateAscent: the model is not conjugate in the site {site!r}: {reason}. Leave"
        " `solver` out (tb.fit(target)), or use tb.solvers.NaturalGradient()."
    )


def _candidates(block: Block) -> list[AbstractExponentialFamily]:
    support = describe(block.constraint)
    if support not in CANDIDATES:
        raise _refusal(block.name, f"no conjugate family is known on its support {support}")
    members = [first_member(family, block.shape) for family in CANDIDATES[support]]
    return [member for member in members if member is not None]


def _reason_against(target: AbstractNumPyroTarget, factors: Factors, name: str) -> str | None:
    """Why the factor `name` cannot be of this family: the first term that forbids it.

    A term may not couple members, and must be affine in the statistics: what the anchors predict at
    two random points is compared with the term there.
    """
    factor, anchors = factors[name], anchors_around(factors[name])
    base = _values(factors, jr.key(1))
    points = [_values({name: factor}, jr.key(2 + i))[name] for i in range(2)]
    sites = _sites(target)
    for index, site in enumerate(sites):
        depends = _dependence(target, index, base, name, factor)
        if not depends.any():
            continue
        if (depends.sum(axis=1) > 1).any():
            return (
                f"log p of {_named(site, name)} couples several of its elements, which"
                f" {_kind(factor)} keeps apart"
            )
        member = depends.argmax(axis=1)
        table = _at_anchors(target, index, base, {name: anchors})
        for point in points:
            statistics = factor.each(lambda m, v: m._statistics(v), jnp.asarray(point))
            weights = np.asarray(anchors.weights(statistics))[:, member]
            predicted = np.sum(weights * table, axis=0)
            actual = np.asarray(_term(target, index, {**base, name: point}))
            size = np.sum(np.abs(weights * table), axis=0) + 1.0
            if not np.all(np.abs(predicted - actual) <= _AFFINE * size):
                # A class of named tuples, of which the type is only that it can be called
                fields = ", ".join(cast(PyTree, factor.statistics_type)._fields)
                return (
                    f"log p of {_named(site, name)} is not affine in the statistics ({fields}) of"
                    f" {_kind(factor)}"
                )
    return None


def _kind(factor: AbstractExponentialFamily) -> str:
    name = type(factor).__name__
    return f"an {name}" if name[0] == "I" else f"a {name}"


def _named(site: str, name: str) -> str:
    return "its own prior" if site == name else f"the site {site!r}"


def _values(factors: Factors, key: jax.Array) -> Values:
    """One draw of each factor, in the shape of its site."""
    keys = jr.split(key, len(factors))
    return {
        name: jnp.asarray(f.values(f._sample(k)))
        for (name, f), k in zip(factors.items(), keys, strict=True)
    }


def _sites(target: AbstractNumPyroTarget) -> list[str]:
    """The sites with a log probability, in the order of the program's terms."""
    names: list[str] = []

    def trace(values):
        terms = target.program.terms(values, {})
        names.extend(site["name"] for site, _ in terms)
        return [jnp.sum(term) for _, term in terms]

    jax.eval_shape(trace, target.layout.structs())
    return names


@eqx.filter_jit
def _term(
    target: AbstractNumPyroTarget, index: int, values: Values
) -> Float[jax.Array, "elements"]:
    """The log probability of the site with this index, flattened."""
    return jnp.ravel(jnp.asarray(target.program.terms(values, {})[index][1]))


def _dependence(
    target: AbstractNumPyroTarget,
    index: int,
    base: Values,
    name: str,
    factor: AbstractExponentialFamily,
) -> Bool[np.ndarray, "elements P"]:
    """Which element of a term depends on which member of a factor: its derivative at one point."""
    shape, rank = jnp.shape(base[name]), len(factor.plate)
    members = math.prod(shape[:rank])
    count = jax.eval_shape(lambda v: _term(target, index, v), base).shape[0]
    if count * math.prod(shape) > _MOST_PAIRS:
        size = f"{count:,} observations times {members:,} elements"
        raise _refusal(name, f"{size} are too many to find out which depends on which")
    jacobian = np.asarray(_jacobian(target, index, base, name))
    return np.abs(jacobian).reshape((count, members, -1)).sum(axis=2) > 0


@eqx.filter_jit
def _jacobian(
    target: AbstractNumPyroTarget, index: int, base: Values, name: str
) -> Float[jax.Array, "elements *value"]:
    return jax.jacfwd(lambda value: _term(target, index, {**base, name: value}))(base[name])


def _at_anchors(
    target: AbstractNumPyroTarget,
    index: int,
    base: Values,
    anchors: dict[str, Anchors],
) -> Float[np.ndarray, "*anchors elements"]:
    """A term at all combinations of the anchors of some factors."""
    points = tuple(jnp.asarray(anchor.points) for anchor in anchors.values())
    return np.asarray(_at_points(target, index, base, tuple(anchors), points))


@eqx.filter_jit
def _at_points(
    target: AbstractNumPyroTarget,
    index: int,
    base: Values,
    names: tuple[str, ...],
    points: tuple[jax.Array, ...],
) -> Float[jax.Array, "*anchors elements"]:
    def at(*values):
        return _term(target, index, {**base, **dict(zip(names, values, strict=True))})

    for i in reversed(range(len(names))):
        at = jax.vmap(at, tuple(0 if j == i else None for j in range(len(names))))
    return at(*points)


def tabulated(target: AbstractNumPyroTarget, factors: Factors) -> FoundModel:
    """The tables of all terms at anchors around the given factors."""
    base = _values(factors, jr.key(1))
    anchors = {name: anchors_around(factor) for name, factor in factors.items()}
    terms = []
    for index, site in enumerate(_sites(target)):
        depends = {
            name: _dependence(target, index, base, name, factor) for name, factor in factors.items()
        }
        members = {name: table.argmax(axis=1) for name, table in depends.items() if table.any()}
        count = len(next(iter(depends.values())))
        size = count * math.prod(anchors[name].points.shape[0] for name in members)
        if size > _MOST_NUMBERS:
            raise _refusal(
                max(members, key=lambda name: anchors[name].points.shape[0]),
                f"log p of the site {site!r} depends on {len(members)} sites with too many"
                f" statistics together ({size:,})",
            )
        table = _at_anchors(target, index, base, {name: anchors[name] for name in members})
        # One member of each: the elements add up
        if all(np.all(member == member[0]) for member in members.values()):
            table = table.sum(axis=-1, keepdims=True)
            members = {name: member[:1] for name, member in members.items()}
        terms.append(Term(table, tuple(members.values()), tuple(members), site))
    return FoundModel(
        family=Product(local=(), **factors),
        layout=target.layout,
        anchors=to_host(anchors),
        terms=tuple(terms),
    )


__all__ = ["FoundModel", "find", "tabulated"]
