"""Exponential families: what a member of one knows of itself.

    q(z) = h(z) exp(<eta, t(z)> - A(eta)),   m = grad A(eta) = E_q[t(z)]

A class describes ONE member; leading axes of its fields are a *plate* of independent members, over
which this base maps.
"""

import abc
import dataclasses
import math
from collections.abc import Callable
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.core
import jax.numpy as jnp
import jax.random as jr
import numpy as np

from ..._numerics import scoped, to_device
from ..._types import Array, PyTree
from ...results import PairingError
from ..base import AbstractFamily, Nats
from ..scales import as_floating


class AbstractExponentialFamily(AbstractFamily):
    """A plate of independent members of one exponential family, on the native scale of its values.

    Fields hold the standard parameters (a shape, a concentration); natural and mean parameters are
    named tuples, one entry for each statistic, with the plate's axes in front: `q.natural.log`,
    `q.mean_parameters.log`. A flat draw `[dim]` is what the other families have too; `values` gives
    it its own shape.

    Implementing one, for a single member: the methods with a leading underscore, without which
    nothing is batched. `ranks`: the rank of each field; `statistic_ranks`: of each statistic;
    `positive`: the fields that are positive numbers (steps multiply them); `support`: of each part
    of a value, by the name that `tb.from_log_density` has for it, None where it is discrete.
    `smooth_draws_no` says why draws are not smooth in the parameters, where they are not.
    """

    space: ClassVar[str] = "native"
    ranks: ClassVar[dict[str, int]]
    statistic_ranks: ClassVar[tuple[int, ...]]
    statistics_type: ClassVar[Any]
    positive: ClassVar[tuple[str, ...]] = ()
    support: ClassVar[Any]
    smooth_draws_no: ClassVar[str] = ""

    # -- one member
    # ----------------------------------------------------------------------------------------------------

    @property
    @abc.abstractmethod
    def _event(self) -> Any:
        """Shape of one value: a tuple, or a dict of tuples."""

    @abc.abstractmethod
    def _natural(self) -> Any:
        """eta of one member."""

    @classmethod
    @abc.abstractmethod
    def _of_natural(cls, eta: Any) -> Any:
        """The member with these natural parameters."""

    @classmethod
    @abc.abstractmethod
    def _of_mean(cls, mean: Any) -> Any:
        """The member with these mean parameters: closed, or by Newton's method."""

    @classmethod
    @abc.abstractmethod
    def _log_partition(cls, eta: Any) -> jax.Array:
        """A(eta) of one member, nats."""

    @abc.abstractmethod
    def _statistics(self, value: Any) -> Any:
        """t(z) of one value."""

    def _log_base(self, value: Any) -> jax.Array | float:
        """log h(z); zero unless a family says otherwise."""
        return 0.0

    @classmethod
    def _expected_log_base(cls, mean: Any) -> Any:
        """E_q[log h(z)] as a function of the mean parameters."""
        return jnp.zeros(())

    @abc.abstractmethod
    def _draw(self, key: jax.Array) -> Any:
        """One value of one member."""

    def _inside(self, value: Any) -> tuple[Any, Any]:
        """`value`, replaced by some value of the support where it is outside, and whether it was
        inside.
        """
        return value, True

    @classmethod
    def _cleaned(cls, eta: Any) -> Any:
        """A gradient in the mean parameters as natural parameters (a symmetric matrix, say)."""
        return eta

    def _valid(self) -> jax.Array:
        """Whether the parameters are inside their domain."""
        names = self.positive
        checks = [jnp.all(jnp.isfinite(jnp.asarray(leaf))) for leaf in jax.tree.leaves(self)]
        return jnp.all(
            jnp.stack([*checks, *(jnp.all(jnp.asarray(getattr(self, name)) > 0) for name in names)])
        )

    # -- the plate
    # -----------------------------------------------------------------------------------------------------

    @property
    def plate(self) -> tuple[int, ...]:
        """Shape of the array of independent members; () for a single one."""
        name, rank = next(iter(self.ranks.items()))
        shape = np.shape(getattr(self, name))
        return shape[: len(shape) - rank]

    @property
    def event(self) -> Any:
        """Shape of one value of one member: a tuple, or a dict of tuples."""
        return _one_of(self)._event if self.plate else self._event

    @property
    def dim(self) -> int:
        """Numbers in one flat draw: members times the size of a value."""
        return math.prod(self.plate) * sum(map(math.prod, shapes_of(self.event)))

    def each(self, function: Callable[..., Any], *trees: PyTree) -> Any:
        """`function(member, ...)` at each member of the plate.

        `trees` have the plate's axes in front.
        """
        for _ in self.plate:
            function = jax.vmap(function)
        return function(self, *trees)

    @property
    @scoped
    def natural(self) -> Any:
        """eta: the natural parameters, a named tuple."""
        return settled(_mapped(to_device(self, self.dtype), "_natural"))

    @property
    @scoped
    def mean_parameters(self) -> Any:
        """m = grad A(eta) = E_q[t(z)], a named tuple of the same shapes."""
        return settled(_mapped(to_device(self, self.dtype), "_mean"))

    @scoped
    def log_partition(self) -> Array:
        """A(eta), `[*plate]`, nats."""
        return settled(_mapped(to_device(self, self.dtype), "_partition"))

    @scoped
    def expected_log_base(self) -> Array:
        """E_q[log h(z)], `[*plate]`, nats."""
        return settled(_mapped(to_device(self, self.dtype), "_base"))

    @scoped
    def statistics(self, z: Array) -> Any:
        """t(z) at one flat point `[dim]`, with the plate's axes in front."""
        q = to_device(self, self.dtype)
        return settled(q.each(lambda q, value: q._statistics(value), q.values(jnp.asarray(z))))

    @classmethod
    @scoped
    def from_natural(cls, eta: Any) -> Any:
        """The members with these natural parameters.

        Axes in front of a statistic's own are a plate.
        """
        return cls._made(cls._of_natural, eta)

    @classmethod
    @scoped
    def from_mean(cls, mean: Any) -> Any:
        """The members with these mean parameters.

        Where no closed form is known, by Newton's method.
        """
        return cls._made(cls._of_mean, mean)

    @classmethod
    def _made(cls, make: Callable[[Any], Any], parameters: Any) -> Any:
        parameters = to_device(cls.statistics_type(*parameters))
        for _ in range(jnp.ndim(parameters[0]) - cls.statistic_ranks[0]):
            make = jax.vmap(make)
        return settled(eqx.filter_jit(make)(parameters))

    @scoped
    def entropies(self) -> Array:
        """A(eta) - <eta, m> - E[log h] of each member, `[*plate]`, nats."""
        return settled(_mapped(to_device(self, self.dtype), "_entropy"))

    @scoped
    def entropy(self) -> Nats:
        """The sum of `entropies`, nats, exact."""
        return settled(jnp.sum(jnp.asarray(self.entropies())))

    def _mean(self) -> Any:
        return jax.grad(self._log_partition)(self._natural())

    def _partition(self) -> jax.Array:
        return self._log_partition(self._natural())

    def _base(self) -> jax.Array:
        return self._expected_log_base(self._mean())

    def _entropy(self) -> jax.Array:
        eta = self._natural()
        partition, mean = jax.value_and_grad(self._log_partition)(eta)
        return partition - inner(eta, mean) - self._expected_log_base(mean)

    @scoped
    def kl(self, other: Any) -> Nats:
        """KL(self || other) = <eta - eta', m> - A(eta) + A(eta'), summed over the plate, nats,
        exact.

        Raises:
            PairingError: when `other` is of another family.
            ValueError: when the plates or the values differ in shape.
        """
        return settled(jnp.sum(jnp.asarray(self.kls(other))))

    @scoped
    def kls(self, other: Any) -> Array:
        """The KL divergence of each member, `[*plate]`, nats."""
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

    def expected_log_prob(self, moments: Any) -> jax.Array:
        """E[log p(z)] for p this member and z with the mean parameters `moments`: what a prior adds
        to a log joint.

        <eta, m> - A(eta) + E[log h], summed over the plate, nats; a single member serves as the
        prior of a whole plate.
        """
        prior = to_device(self, self.dtype)
        eta, partition = prior.each(lambda q: q._natural()), prior.each(lambda q: q._partition())

        def term(m: Any, e: Any, a: jax.Array) -> jax.Array:
            return inner(e, m) - a + self._expected_log_base(m)

        lead = jnp.ndim(moments[0]) - self.statistic_ranks[0]
        for depth in range(lead):
            term = jax.vmap(term, (0, 0, 0) if depth < len(self.plate) else (0, None, None))
        return jnp.sum(term(moments, eta, partition))

    def valid(self) -> Any:
        """Whether all parameters are finite and inside their domain."""
        return jnp.all(to_device(self, self.dtype).each(lambda q: q._valid()))

    def values(self, z: Array) -> Any:
        """A flat draw `[..., dim]` in the shape of its values.

        `[..., *plate, *event]`, a dict where a value has parts.
        """
        xp, plate, shapes = _namespace(z), self.plate, shapes_of(self.event)
        lead, size = np.shape(z)[:-1], sum(map(math.prod, shapes))
        table = xp.asarray(z).reshape((*lead, *plate, size))
        ends = np.cumsum([math.prod(shape) for shape in shapes])[:-1].tolist()
        parts = xp.split(table, ends, axis=-1)
        shaped = [
            p.reshape((*lead, *plate, *shape)) for p, shape in zip(parts, shapes, strict=True)
        ]
        return (
            dict(zip(sorted(self.event), shaped, strict=True))
            if isinstance(self.event, dict)
            else shaped[0]
        )

    def flat(self, values: Any) -> Array:
        """The inverse of `values`: `[..., dim]`."""
        event, plate, shapes = self.event, self.plate, shapes_of(self.event)
        parts = [values[name] for name in sorted(event)] if isinstance(event, dict) else [values]
        xp, rank = _namespace(*parts), len(shapes[0]) + len(plate)
        lead = np.shape(parts[0])[: np.ndim(parts[0]) - rank]
        rows = [xp.asarray(p, dtype=self.dtype).reshape((*lead, *plate, -1)) for p in parts]
        return xp.concatenate(rows, axis=-1).reshape((*lead, self.dim))

    def take(self, index: Array) -> Any:
        """The members at `index` of the first axis of the plate."""
        return jax.tree.map(lambda leaf: leaf[index], self)

    def retract(self, step: Any) -> Any:
        """Steps add to the fields, but multiply positive ones by exp(step), so that no step leaves
        the domain.
        """

        def moved(name: str) -> Any:
            field, by = getattr(self, name), getattr(step, name)
            return field * jnp.exp(by) if name in self.positive else field + by

        return rebuilt(self, **{name: moved(name) for name in self.ranks})

    def _sample(self, key: jax.Array, x: PyTree = None) -> jax.Array:
        return _drawn(self, key)

    def _log_prob(self, z: jax.Array, x: PyTree = None) -> jax.Array:
        return _densities(self, z)

    def _log_density(self, value: Any) -> jax.Array:
        eta, (inside, ok) = self._natural(), self._inside(value)
        log_q = (
            inner(eta, self._statistics(inside)) - self._log_partition(eta) + self._log_base(inside)
        )
        return jnp.where(ok, log_q, -jnp.inf)


def inner(eta: Any, statistics: Any) -> jax.Array:
    """<eta, t>: the sum of all products, matrices entry by entry.

    An eta of zero leaves out an infinite statistic.
    """
    pairs = zip(jax.tree.leaves(eta), jax.tree.leaves(statistics), strict=True)
    return sum((jnp.sum(jnp.where(a == 0, 0.0, a * b)) for a, b in pairs), jnp.zeros(()))


def plated(name: str, **fields: tuple[Any, int]) -> list[Any]:
    """Parameters as floating arrays whose plates (the axes before the last `rank`) are broadcast to
    one shape.

    Raises:
        ValueError: when the plates do not fit together, naming the fields.
    """
    arrays = {field: as_floating(value) for field, (value, _) in fields.items()}
    if not all(eqx.is_array_like(array) and hasattr(array, "shape") for array in arrays.values()):
        # a tree of something else, on its way through a transformation
        return list(arrays.values())
    ranks = {field: rank for field, (_, rank) in fields.items()}
    for field, array in arrays.items():
        if array.ndim < ranks[field]:
            raise ValueError(
                f"{name}: `{field}` must have at least {ranks[field]} axes, got the shape"
                f" {array.shape}."
            )
    leads = {field: array.shape[: array.ndim - ranks[field]] for field, array in arrays.items()}
    try:
        plate = np.broadcast_shapes(*leads.values())
    except ValueError:
        shown = ", ".join(f"`{field}` {lead}" for field, lead in leads.items())
        raise ValueError(
            f"{name}: the leading axes (the plate) do not fit together: {shown}."
        ) from None
    return [
        (
            array
            if leads[f] == plate
            else _namespace(array).broadcast_to(array, plate + array.shape[array.ndim - ranks[f] :])
        )
        for f, array in arrays.items()
    ]


def check_positive(name: str, **fields: Any) -> None:
    """Raise a ValueError that names the first field with a number that is not positive and finite.

    Known numbers only.
    """
    for field, value in fields.items():
        known = isinstance(value, (np.ndarray, np.generic))
        if known and not np.all((np.asarray(value, np.float64) > 0) & np.isfinite(value)):
            raise ValueError(
                f"{name}: `{field}` must be positive and finite, got"
                f" {np.asarray(value).reshape(-1)[:5]}."
            )


def check_same(name: str, **sizes: int) -> None:
    """Raise a ValueError unless all sizes are equal."""
    if len(set(sizes.values())) > 1:
        raise ValueError(
            f"{name}: the fields disagree in size:"
            f" {', '.join(f'`{k}` {v}' for k, v in sizes.items())}."
        )


def rebuilt(q: Any, **fields: Any) -> Any:
    """`q` with other leaves, past its constructor.

    For numbers that are known to be inside the domain.
    """
    new = object.__new__(type(q))
    for field in dataclasses.fields(q):
        object.__setattr__(new, field.name, fields.get(field.name, getattr(q, field.name)))
    return new


def settled(tree: Any) -> Any:
    """NumPy arrays, whose float64 no JAX flag narrows; what is being traced is left alone."""

    def off(leaf):
        return (
            leaf
            if isinstance(leaf, jax.core.Tracer) or not isinstance(leaf, jax.Array)
            else np.asarray(leaf)
        )

    return jax.tree.map(off, tree)


def shapes_of(event: Any) -> list[tuple[int, ...]]:
    """The shapes of the parts of a value, in the order of their names."""
    return [event[name] for name in sorted(event)] if isinstance(event, dict) else [event]


def symmetric(matrix: Array) -> jax.Array:
    """The mean of a matrix and its transpose."""
    return jnp.asarray(0.5 * (matrix + matrix.T))


@eqx.filter_jit
def _mapped(q: Any, method: str) -> Any:
    return q.each(lambda member: getattr(member, method)())


@eqx.filter_jit
def _drawn(q: Any, key: jax.Array) -> jax.Array:
    keys = jr.split(key, q.plate) if q.plate else key
    return q.flat(q.each(lambda member, k: member._draw(k), keys))


@eqx.filter_jit
def _densities(q: Any, z: jax.Array) -> jax.Array:
    return jnp.sum(q.each(lambda member, value: member._log_density(value), q.values(z)))


@eqx.filter_jit
def _kl_mapped(p: Any, q: Any) -> Any:
    return p.each(_kl, q)


def _kl(p: Any, q: Any) -> jax.Array:
    first, second = p._natural(), q._natural()
    partition, mean = jax.value_and_grad(p._log_partition)(first)
    difference = jax.tree.map(lambda a, b: a - b, first, second)
    return inner(difference, mean) - partition + q._log_partition(second)


def _one_of(q: Any) -> Any:
    """One member of the plate, shapes only."""
    rank = len(q.plate)
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(np.shape(leaf)[rank:], leaf.dtype), q)


def _namespace(*arrays: Any) -> Any:
    return jnp if any(isinstance(array, jax.Array) for array in arrays) else np


__all__ = [
    "AbstractExponentialFamily",
    "check_positive",
    "check_same",
    "inner",
    "plated",
    "rebuilt",
    "settled",
    "symmetric",
]
