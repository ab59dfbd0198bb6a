"""Amortised families: q(z | x) = head(encoder(x)), trained once for all x."""

import abc
from collections.abc import Callable, Iterable
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Float

from .._numerics import as_key, key_words, scoped, to_device
from .._types import Array, Key, PyTree
from .base import MOMENT_DRAWS, AbstractFamily
from .encoder import AbstractEncoder
from .head import AbstractHead


class Scaling(eqx.Module):
    """What x and z look like under the prior, by which they are standardised; not trained.

    Attributes:
        x_shift: of the structure of x, subtracted.
        x_scale: of the structure of x, divided by.
        x_low: smallest simulated values.
        x_high: largest simulated values.
        z_shift: subtracted from z.
        z_scale: divides z.
        squash: whether standardised x goes through asinh, which tames heavy tails.
    """

    x_shift: PyTree
    x_scale: PyTree
    x_low: PyTree
    x_high: PyTree
    z_shift: Float[Array, "dim"]
    z_scale: Float[Array, "dim"]
    squash: bool = eqx.field(static=True, default=False)

    @staticmethod
    def none(x: PyTree, dim: int, dtype: np.dtype | type[np.floating] = np.float64) -> "Scaling":
        """No scaling, for x of the structure and shapes of `x`."""
        zeros = jax.tree.map(lambda leaf: np.zeros(np.shape(leaf), dtype), x)
        ones = jax.tree.map(lambda leaf: np.ones(np.shape(leaf), dtype), x)
        info = np.finfo(dtype)
        low = jax.tree.map(lambda leaf: np.full(np.shape(leaf), info.min, dtype), x)
        high = jax.tree.map(lambda leaf: np.full(np.shape(leaf), info.max, dtype), x)
        return Scaling(zeros, ones, low, high, np.zeros(dim, dtype), np.ones(dim, dtype))

    def standardise(self, x: PyTree) -> PyTree:
        """x as the encoder sees it."""
        scaled = jax.tree.map(
            lambda v, a, b: (v - a) / b, x, *jax.lax.stop_gradient((self.x_shift, self.x_scale))
        )
        return jax.tree.map(jnp.arcsinh, scaled) if self.squash else scaled

    def checked(self, x: PyTree) -> PyTree:
        """x as arrays in the dtype of the scaling.

        Raises:
            ValueError: x has another structure or shape than it was trained on; says which.
        """
        if jax.tree.structure(x) != jax.tree.structure(self.x_shift):
            raise ValueError(
                f"`x` has the structure {jax.tree.structure(x)}, but q was trained on"
                f" {jax.tree.structure(self.x_shift)}. Pass data in the form in which `simulate`"
                " returns them."
            )
        got, wanted = shapes_of(x), shapes_of(self.x_shift)
        if got != wanted:
            raise ValueError(
                f"`x` has shape {_plain(got)}, but q was trained on {_plain(wanted)}. Pass one data"
                " set in the form in which `simulate` returns it, or a batch of them with one"
                " leading axis more; for data of another size, simulate that size and fit again."
            )
        return jax.tree.map(lambda leaf, like: jnp.asarray(leaf, like.dtype), x, self.x_shift)


def shapes_of(x: PyTree) -> list[tuple[int, ...]]:
    """Shapes of the leaves of x."""
    return [tuple(np.shape(leaf)) for leaf in jax.tree.leaves(x)]


def _plain(shapes: list[tuple[int, ...]]) -> tuple[int, ...] | list[tuple[int, ...]]:
    """The shape, where there is but one, for a message."""
    return shapes[0] if len(shapes) == 1 else shapes


class AbstractAmortised(AbstractFamily):
    """A family of posteriors q(z | x), trained once for all x: one network or several."""

    conditional: ClassVar[bool] = True

    @property
    @abc.abstractmethod
    def members(self) -> "tuple[Conditional, ...]":
        """The networks that q consists of."""

    @abc.abstractmethod
    def moments(self, x: PyTree) -> tuple[Float[Array, "dim"], Float[Array, "dim"]] | None:
        """Means and sds of standardised z given x, which was checked; None without closed forms."""

    @abc.abstractmethod
    def networks(self) -> "tuple[PyTree, PyTree, Callable[[PyTree], AbstractAmortised]]":
        """Weights with a leading axis, one for each network; what is not a weight; the way back.

        The last makes q of new weights.
        """

    def at(self, x: PyTree) -> "Conditioned":
        """q(. | x) for one data set: an ordinary member of a family.

        Raises:
            ValueError: x has another structure or shape than q was trained on.
        """
        return conditioned(self, x)


class Conditional(AbstractAmortised):
    """q(z | x): an encoder turns x into the parameters of a head's distribution.

    What amortised inference trains.

        z = z_shift + z_scale u,   u ~ head( . ; eta),   eta = encoder(standardised x)

    Make one for a simulator with `tb.amortised.amortised(target)`; condition it on data with
    `q.at(x)`. For one data set and a log density that can be evaluated, an ordinary fit is closer
    and quicker.

    Attributes:
        encoder: x -> eta.
        head: the distribution, given eta.
        scaling: of x and z; not trained.
    """

    encoder: AbstractEncoder
    head: AbstractHead
    scaling: Scaling

    @property
    def dim(self) -> int:
        return self.head.dim

    def networks(self) -> tuple[PyTree, PyTree, Callable[[PyTree], AbstractAmortised]]:
        weights, static = eqx.partition(self, eqx.is_inexact_array)

        def first(weights: PyTree) -> AbstractAmortised:
            return eqx.combine(jax.tree.map(lambda leaf: leaf[0], weights), static)

        return jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], weights), static, first

    # A constant of most families, and here a property of the head: read alike from an instance.
    @property
    def reparameterised(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.head.reparameterised

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(self.scaling.z_shift.dtype)

    @property
    def members(self) -> "tuple[Conditional, ...]":
        return (self,)

    def moments(self, x: PyTree) -> tuple[Float[Array, "dim"], Float[Array, "dim"]] | None:
        return self.head.moments(self.eta(x))

    def eta(self, x: PyTree) -> Float[Array, "size"]:
        """What the head gets for x."""
        return self.encoder(self.scaling.standardise(x))

    def _sample(self, key: jax.Array, x: PyTree = None) -> Float[Array, "dim"]:
        x = self._given(x)
        return self._restored(self.head.sample(self.eta(x), key))

    def _log_prob(self, z: Float[Array, "dim"], x: PyTree = None) -> Float[Array, ""]:
        x = self._given(x)
        return self.head.log_prob(self.eta(x), self._standard(z)) - self._log_scale

    def _log_prob_to_train(self, z: Float[Array, "dim"], x: PyTree = None) -> Float[Array, ""]:
        return -self.head.loss(self.eta(self._given(x)), self._standard(z)) - self._log_scale

    def _given(self, x: PyTree) -> PyTree:
        if x is None:
            raise ValueError(
                "This approximation is conditional: it is a posterior only for given data. Pass"
                " `x`, or condition it first: fit.at(x), or fit.q.at(x)."
            )
        return self.scaling.checked(x)

    def _standard(self, z: Float[Array, "dim"]) -> Float[Array, "dim"]:
        shift, scale = jax.lax.stop_gradient((self.scaling.z_shift, self.scaling.z_scale))
        return (z - shift) / scale

    def _restored(self, u: Float[Array, "dim"]) -> Float[Array, "dim"]:
        shift, scale = jax.lax.stop_gradient((self.scaling.z_shift, self.scaling.z_scale))
        return shift + scale * u

    @property
    def _log_scale(self) -> Float[jax.Array, ""]:
        return jnp.sum(jnp.log(jax.lax.stop_gradient(jnp.asarray(self.scaling.z_scale))))


class Ensemble(AbstractAmortised):
    """R networks of one kind, from R starts: q(z | x) is their equal mixture.

    They are trained side by side in one program. Where they agree, training found the same answer
    from R starts; where they differ, the mixture says so by its width.

    Attributes:
        stacked: a Conditional whose arrays have a leading axis R.
        count: R.
    """

    stacked: Conditional
    count: int = eqx.field(static=True)
    reparameterised: ClassVar[bool] = False

    @staticmethod
    def stack(members: Iterable[Conditional]) -> "Ensemble":
        """The ensemble of several networks of the same structure."""
        members = list(members)
        arrays = [eqx.filter(m, eqx.is_array) for m in members]
        stacked = jax.tree.map(
            lambda *leaves: np.stack([np.asarray(leaf) for leaf in leaves]), *arrays
        )
        return Ensemble(
            eqx.combine(stacked, eqx.filter(members[0], eqx.is_array, inverse=True)), len(members)
        )

    def networks(self) -> tuple[PyTree, PyTree, Callable[[PyTree], AbstractAmortised]]:
        weights, static = eqx.partition(self.stacked, eqx.is_inexact_array)
        return weights, static, lambda weights: Ensemble(eqx.combine(weights, static), self.count)

    @property
    def members(self) -> tuple[Conditional, ...]:
        return tuple(self._member(i) for i in range(self.count))

    @property
    def dim(self) -> int:
        return self.stacked.dim

    @property
    def dtype(self) -> np.dtype:
        return self.stacked.dtype

    @property
    def head(self) -> AbstractHead:
        """The head of the first network."""
        return self._member(0).head

    @property
    def scaling(self) -> Scaling:
        """The scaling, which the networks share."""
        return self._member(0).scaling

    def moments(self, x: PyTree) -> None:
        return None

    def _sample(self, key: jax.Array, x: PyTree = None) -> Float[Array, "dim"]:
        choose, draw = jr.split(key)
        arrays, rest = eqx.partition(self.stacked, eqx.is_array)
        i = jr.randint(choose, (), 0, self.count)
        return eqx.combine(jax.tree.map(lambda leaf: jnp.asarray(leaf)[i], arrays), rest)._sample(
            draw, x
        )

    def _log_prob(self, z: Float[Array, "dim"], x: PyTree = None) -> Float[Array, ""]:
        arrays, rest = eqx.partition(self.stacked, eqx.is_array)
        each = jax.vmap(lambda a: eqx.combine(a, rest)._log_prob(z, x))(arrays)
        return jax.nn.logsumexp(each) - float(np.log(self.count))

    def _member(self, i: int) -> Conditional:
        arrays, rest = eqx.partition(self.stacked, eqx.is_array)
        return eqx.combine(jax.tree.map(lambda leaf: leaf[i], arrays), rest)


class Conditioned(AbstractFamily):
    """q(. | x) at one x: the member of an amortised family that belongs to the data.

    Its leaves are those of the network.

    Attributes:
        family: the amortised family.
        x: the data; not trained.
    """

    family: AbstractAmortised
    x: PyTree

    @property
    def dim(self) -> int:
        return self.family.dim

    @property
    def dtype(self) -> np.dtype:
        return self.family.dtype

    def networks(self) -> tuple[PyTree, PyTree, Callable[[PyTree], AbstractAmortised]]:
        weights, static = eqx.partition(self, eqx.is_inexact_array)

        def first(weights: PyTree) -> AbstractAmortised:
            return eqx.combine(jax.tree.map(lambda leaf: leaf[0], weights), static)

        return jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], weights), static, first

    # A constant of most families, and here a property of the head: read alike from an instance.
    @property
    def reparameterised(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.family.reparameterised

    @property
    @scoped
    def moments(self) -> tuple[Float[np.ndarray, "dim"], Float[np.ndarray, "dim"]]:
        """Means and sds of z, of an angle its direction and circular sd: closed, or from draws."""
        scaling = self.family.members[0].scaling
        closed = self.family.moments(scaling.checked(self.x))
        if closed is None:
            z, _ = self.draw(MOMENT_DRAWS, 0)
            return z.mean(axis=0), z.std(axis=0)
        mean = np.asarray(scaling.z_shift + scaling.z_scale * closed[0])
        return mean, np.asarray(scaling.z_scale * closed[1])

    def _sample(self, key: jax.Array, x: PyTree = None) -> Float[Array, "dim"]:
        return self.family._sample(key, jax.lax.stop_gradient(self.x))

    def _log_prob(self, z: Float[Array, "dim"], x: PyTree = None) -> Float[Array, ""]:
        return self.family._log_prob(z, jax.lax.stop_gradient(self.x))

    def _log_prob_to_train(self, z: Float[Array, "dim"], x: PyTree = None) -> Float[Array, ""]:
        return self.family._log_prob_to_train(z, jax.lax.stop_gradient(self.x))


@scoped
def conditioned(family: AbstractAmortised, x: PyTree) -> Conditioned:
    """`family` at one x, which is checked and kept in NumPy."""
    checked = family.members[0].scaling.checked(x)
    return Conditioned(family, jax.tree.map(np.asarray, checked))


def draws_at(
    q: AbstractFamily, x: PyTree, key: Key, n: int
) -> Float[np.ndarray, "data_sets n dim"]:
    """`n` draws of q(. | x_i) for each of a batch of data sets."""
    key_words(key)
    arrays = jax.tree.map(lambda leaf: jnp.asarray(leaf, q.dtype), x)
    return np.asarray(_draws_at(to_device(q, q.dtype), arrays, as_key(key), n))


@eqx.filter_jit
def _draws_at(
    q: AbstractFamily, x: PyTree, key: jax.Array, n: int
) -> Float[Array, "data_sets n dim"]:
    def draws(x: PyTree, key: jax.Array) -> Float[Array, "n dim"]:
        return jax.vmap(lambda k: q._sample(k, x))(jr.split(key, n))

    return jax.vmap(draws)(x, jr.split(key, jax.tree.leaves(x)[0].shape[0]))


def log_probs_at(
    q: AbstractFamily, z: Float[Array, "data_sets dim"], x: PyTree
) -> Float[np.ndarray, "data_sets"]:
    """log q(z_i | x_i) for a batch of pairs."""
    arrays = jax.tree.map(lambda leaf: jnp.asarray(leaf, q.dtype), (z, x))
    return np.asarray(_log_probs_at(to_device(q, q.dtype), *arrays))


@eqx.filter_jit
def _log_probs_at(
    q: AbstractFamily, z: Float[Array, "data_sets dim"], x: PyTree
) -> Float[Array, "data_sets"]:
    return jax.vmap(q._log_prob)(z, x)


__all__ = [
    "AbstractAmortised",
    "Conditional",
    "Conditioned",
    "Ensemble",
    "Scaling",
    "conditioned",
    "draws_at",
    "log_probs_at",
    "shapes_of",
]
