"""Exponential families: what a member of one knows of itself.

    q(z) = h(z) exp(<eta, t(z)> - A(eta)),   m = grad A(eta) = E_q[t(z)]

A class describes ONE member; leading axes of its fields are a *plate* of independent members, over
which this base maps.
"""

import abc
import math
from collections.abc import Callable
from typing import ClassVar, TypeAlias, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Bool, Float, Shaped

from ..._numerics import namespace, scoped, to_device
from ..._types import Array, PyTree, Scalar, Self
from ...results import PairingError
from ..base import AbstractFamily
from .trees import Event, inner, rebuilt, settled, shapes_of, size_of

T = TypeVar("T")

StatisticsType: TypeAlias = Callable[..., PyTree]
"""The named tuple of a family's statistics, to be called with one array for each."""

Support: TypeAlias = str | dict[str, str] | None
"""What `tb.from_log_density` calls the support, of each part of a value; None where discrete."""


class AbstractExponentialFamily(AbstractFamily):
    """A plate of independent members of one exponential family, on the native scale of its values.

    Fields hold the standard parameters (a shape, a concentration); natural and mean parameters are
    named tuples, one entry for each statistic, with the plate's axes in front: `q.natural.log`,
    `q.mean_parameters.log`. A flat draw `[dim]` is what the other families have too; `values` gives
    it its own shape.

    Implementing one, for a single member: the methods with a leading underscore, which see no
    plate. eta and t are the family's named tuple, a value is an array or a dict of arrays. `ranks`:
    the rank of each field; `statistic_ranks`: of each statistic; `positive`: the fields that are
    positive numbers (steps multiply them). `smooth_draws_no` says why draws are not smooth in the
    parameters, where they are not.
    """

    space: ClassVar[str] = "native"
    ranks: ClassVar[dict[str, int]]
    statistic_ranks: ClassVar[tuple[int, ...]]
    statistics_type: ClassVar[StatisticsType]
    positive: ClassVar[tuple[str, ...]] = ()
    support: ClassVar[Support]
    smooth_draws_no: ClassVar[str] = ""

    # -- one member ------------------------------------------------------------------------------

    @property
    @abc.abstractmethod
    def _event(self) -> Event:
        """Shape of one value: a tuple, or a dict of tuples."""

    @abc.abstractmethod
    def _natural(self) -> PyTree:
        """eta of one member."""

    @classmethod
    @abc.abstractmethod
    def _of_natural(cls, eta: PyTree) -> Self:
        """The member with these natural parameters."""

    @classmethod
    @abc.abstractmethod
    def _of_mean(cls, mean: PyTree) -> Self:
        """The member with these mean parameters: closed, or by Newton's method."""

    @classmethod
    @abc.abstractmethod
    def _log_partition(cls, eta: PyTree) -> Float[Array, ""]:
        """A(eta) of one member, nats."""

    @abc.abstractmethod
    def _statistics(self, value: PyTree) -> PyTree:
        """t(z) of one value."""

    def _log_base(self, value: PyTree) -> Scalar:
        """log h(z); zero unless a family says otherwise."""
        return 0.0

    @classmethod
    def _expected_log_base(cls, mean: PyTree) -> Float[Array, ""]:
        """E_q[log h(z)] as a function of the mean parameters."""
        return jnp.zeros(())

    @abc.abstractmethod
    def _draw(self, key: jax.Array) -> PyTree:
        """One value of one member."""

    def _inside(self, value: PyTree) -> tuple[PyTree, Bool[Array, ""] | bool]:
        """A value of the support, `value` itself if it is one, and whether it is.

        Where it is not, the density is zero, but what is computed on the way must stay finite:
        derivatives of what is not chosen are multiplied by zero, which cures no NaN.
        """
        return value, True

    @classmethod
    def _cleaned(cls, eta: PyTree) -> PyTree:
        """A gradient in the mean parameters as natural parameters (a symmetric matrix, say)."""
        return eta

    def _valid(self) -> Bool[Array, ""]:
        """Whether the parameters are inside their domain."""
        names = self.positive
        checks = [jnp.all(jnp.isfinite(jnp.asarray(leaf))) for leaf in jax.tree.leaves(self)]
        return jnp.all(
            jnp.stack([*checks, *(jnp.all(jnp.asarray(getattr(self, name)) > 0) for name in names)])
        )

    # -- the plate -------------------------------------------------------------------------------

    @property
    def plate(self) -> tuple[int, ...]:
        """Shape of the array of independent members; () for a single one."""
        name, rank = next(iter(self.ranks.items()))
        shape = np.shape(getattr(self, name))
        return shape[: len(shape) - rank]

    @property
    def event(self) -> Event:
        """Shape of one value of one member: a tuple, or a dict of tuples."""
        return _one_of(self)._event if self.plate else self._event

    @property
    def dim(self) -> int:
        """Numbers in one flat draw: members times the size of a value."""
        return math.prod(self.plate) * size_of(self.event)

    def each(self, function: Callable[..., T], *trees: PyTree) -> T:
        """`function(member, ...)` at each member of the plate, whose axes `trees` have in front."""
        for _ in self.plate:
            function = jax.vmap(function)
        return function(self, *trees)

    @property
    @scoped
    def natural(self) -> PyTree:
        """eta: the natural parameters, a named tuple."""
        return settled(_mapped(to_device(self, self.dtype), "_natural"))

    @property
    @scoped
    def mean_parameters(self) -> PyTree:
        """m = grad A(eta) = E_q[t(z)], a named tuple of the same shapes."""
        return settled(_mapped(to_device(self, self.dtype), "_mean"))

    @scoped
    def log_partition(self) -> Float[Array, "*plate"]:
        """A(eta), nats."""
        return settled(_mapped(to_device(self, self.dtype), "_partition"))

    @scoped
    def statistics(self, z: Float[Array, "dim"]) -> PyTree:
        """t(z) at one flat point, with the plate's axes in front."""
        q = to_device(self, self.dtype)
        return settled(q.each(lambda q, value: q._statistics(value), q.values(jnp.asarray(z))))

    @classmethod
    @scoped
    def from_natural(cls, eta: PyTree) -> Self:
        """The members with these natural parameters, of which axes in front are a plate."""
        return cls._made(cls._of_natural, eta)

    @classmethod
    @scoped
    def from_mean(cls, mean: PyTree) -> Self:
        """The members with these mean parameters: closed, or by Newton's method."""
        return cls._made(cls._of_mean, mean)

    @classmethod
    def _made(cls, make: Callable[[PyTree], Self], parameters: PyTree) -> Self:
        parameters = to_device(cls.statistics_type(*parameters))
        for _ in range(jnp.ndim(parameters[0]) - cls.statistic_ranks[0]):
            make = jax.vmap(make)
        return settled(eqx.filter_jit(make)(parameters))

    @scoped
    def entropies(self) -> Float[Array, "*plate"]:
        """A(eta) - <eta, m> - E[log h] of each member, nats."""
        return settled(_mapped(to_device(self, self.dtype), "_entropy"))

    @scoped
    def entropy(self) -> Scalar:
        """The sum of `entropies`, nats, exact."""
        return settled(jnp.sum(jnp.asarray(self.entropies())))

    def _mean(self) -> PyTree:
        return jax.grad(self._log_partition)(self._natural())

    def _partition(self) -> Float[Array, ""]:
        return self._log_partition(self._natural())

    def _entropy(self) -> Float[Array, ""]:
        eta = self._natural()
        partition, mean = jax.value_and_grad(self._log_partition)(eta)
        return partition - inner(eta, mean) - self._expected_log_base(mean)

    @scoped
    def kl(self, other: "AbstractExponentialFamily") -> Scalar:
        """KL(self || other), summed over the plate, nats, exact.

        Of one member it is <eta - eta', m> - A(eta) + A(eta').

        Raises:
            PairingError: when `other` is of another family.
            ValueError: when the plates or the values differ in shape.
        """
        return settled(jnp.sum(jnp.asarray(self.kls(other))))

    @scoped
    def kls(self, other: "AbstractExponentialFamily") -> Float[Array, "*plate"]:
        """The KL divergence of each member, nats."""
        if type(other) is not type(self):
            raise PairingError(
                "kl: the closed form is between members of one family, got "
                f"{type(self).__name__} and {type(other).__name__}."
            )
        if (self.plate, self.event) != (other.plate, other.event):
            raise ValueError(
                f"kl: shapes differ: {self.plate}, {self.event} and {other.plate}, {other.event}."
            )
        p, q = to_device((self, other), self.dtype)
        return settled(_kl_mapped(p, q))

    def expected_log_prob(self, moments: PyTree) -> Float[Array, ""]:
        """E[log p(z)] for p this member and z with the mean parameters `moments`.

        This is what a prior adds to a log joint: <eta, m> - A(eta) + E[log h], summed over the
        plate, nats; a single member serves as the prior of a whole plate.
        """
        prior = to_device(self, self.dtype)
        eta, partition = prior.each(lambda q: q._natural()), prior.each(lambda q: q._partition())

        def term(m: PyTree, e: PyTree, a: Float[Array, ""]) -> Float[Array, ""]:
            return inner(e, m) - a + self._expected_log_base(m)

        lead = jnp.ndim(moments[0]) - self.statistic_ranks[0]
        for depth in range(lead):
            term = jax.vmap(term, (0, 0, 0) if depth < len(self.plate) else (0, None, None))
        return jnp.sum(term(moments, eta, partition))

    def valid(self) -> Bool[Array, ""]:
        """Whether all parameters are finite and inside their domain."""
        return jnp.all(to_device(self, self.dtype).each(lambda q: q._valid()))

    def values(self, z: Shaped[Array, "*batch dim"]) -> PyTree:
        """A flat draw in the shape of its values, `[*batch, *plate, *event]`.

        A dict where a value has parts.
        """
        xp, plate, shapes = namespace(z), self.plate, shapes_of(self.event)
        lead = np.shape(z)[:-1]
        table = xp.asarray(z).reshape((*lead, *plate, size_of(self.event)))
        ends = np.cumsum([math.prod(shape) for shape in shapes])[:-1].tolist()
        parts = xp.split(table, ends, axis=-1)
        shaped = [
            p.reshape((*lead, *plate, *shape)) for p, shape in zip(parts, shapes, strict=True)
        ]
        if isinstance(self.event, dict):
            return dict(zip(sorted(self.event), shaped, strict=True))
        return shaped[0]

    def flat(self, values: PyTree) -> Float[Array, "*batch dim"]:
        """The inverse of `values`."""
        event, plate, shapes = self.event, self.plate, shapes_of(self.event)
        parts = [values[name] for name in sorted(event)] if isinstance(event, dict) else [values]
        xp, rank = namespace(*parts), len(shapes[0]) + len(plate)
        lead = np.shape(parts[0])[: np.ndim(parts[0]) - rank]
        rows = [xp.asarray(p, dtype=self.dtype).reshape((*lead, *plate, -1)) for p in parts]
        return xp.concatenate(rows, axis=-1).reshape((*lead, self.dim))

    def take(self, index: Shaped[Array, "..."] | int) -> Self:
        """The members at `index` of the first axis of the plate."""
        return jax.tree.map(lambda leaf: leaf[index], self)

    def retract(self, step: PyTree) -> Self:
        """Steps add to fields; positive ones they multiply by exp(step), which stays positive."""

        def moved(name: str) -> Array:
            field, by = getattr(self, name), getattr(step, name)
            return field * jnp.exp(by) if name in self.positive else field + by

        return rebuilt(self, **{name: moved(name) for name in self.ranks})

    def _sample(self, key: jax.Array, x: PyTree = None) -> Float[Array, "dim"]:
        return _drawn(self, key)

    def _log_prob(self, z: Float[Array, "dim"], x: PyTree = None) -> Float[Array, ""]:
        return _densities(self, z)

    def _log_density(self, value: PyTree) -> Float[Array, ""]:
        eta, (inside, ok) = self._natural(), self._inside(value)
        log_q = (
            inner(eta, self._statistics(inside)) - self._log_partition(eta) + self._log_base(inside)
        )
        return jnp.where(ok, log_q, -jnp.inf)


@eqx.filter_jit
def _mapped(q: AbstractExponentialFamily, method: str) -> PyTree:
    # The method by its name, a string: one compilation for all members of a family, which a closure
    # made at each call would not have.
    return q.each(lambda member: getattr(member, method)())


@eqx.filter_jit
def _drawn(q: AbstractExponentialFamily, key: jax.Array) -> Float[Array, "dim"]:
    keys = jr.split(key, q.plate) if q.plate else key
    return q.flat(q.each(lambda member, k: member._draw(k), keys))


@eqx.filter_jit
def _densities(q: AbstractExponentialFamily, z: Float[Array, "dim"]) -> Float[Array, ""]:
    return jnp.sum(q.each(lambda member, value: member._log_density(value), q.values(z)))


@eqx.filter_jit
def _kl_mapped(
    p: AbstractExponentialFamily, q: AbstractExponentialFamily
) -> Float[Array, "*plate"]:
    return p.each(_kl, q)


def _kl(p: AbstractExponentialFamily, q: AbstractExponentialFamily) -> Float[Array, ""]:
    first, second = p._natural(), q._natural()
    partition, mean = jax.value_and_grad(p._log_partition)(first)
    difference = jax.tree.map(lambda a, b: a - b, first, second)
    return inner(difference, mean) - partition + q._log_partition(second)


def _one_of(q: AbstractExponentialFamily) -> AbstractExponentialFamily:
    """One member of the plate, shapes only."""
    rank = len(q.plate)
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(np.shape(leaf)[rank:], leaf.dtype), q)


__all__ = ["AbstractExponentialFamily", "StatisticsType", "Support", "inner", "rebuilt", "settled"]
