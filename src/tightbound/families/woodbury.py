"""The algebra of a covariance S = D^2 + U U': its cost is linear in dim, and it keeps its digits.

Everything is read off a form S = M (I + B B') M' with B `[dim, rank]` and an M that is easy to
invert. The textbook (Woodbury) has M = D and B = D^-1 U: `Plain`. It fails for members that
optimisers reach often, the Heywood cases of factor analysis: the factors explain a coordinate
almost alone, D_i goes to zero, and row i of B to infinity. S does not notice, for it hardly depends
on D_i; but B'B is of the size (|U_i| / D_i)^2, and where that is 1e16 nothing of the identity is
left in I + B'B. Its Cholesky factorisation then fails, or gives a determinant that is off by many
nats, which a search climbs.

`Swapped` is the cure. A draw is z = D e + U f with noises e `[dim]` and f `[rank]`. A coordinate
that has next to no noise of its own determines a factor, so the two swap their roles: that factor
becomes the coordinate's noise, and e_i a factor with the small loading D_i. M is then triangular by
blocks instead of diagonal, and no entry of B is large. At most `rank` coordinates can swap, and no
more are ever needed: what the other rows add to them is a combination of factors already taken.
"""

import abc
import dataclasses
from collections.abc import Callable
from typing import TypeVar

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from .._numerics import namespace
from .._types import Array
from .pivots import constant, is_far, pivots
from .scales import solve_lower

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class AbstractForm(abc.ABC):
    """S = M (I + B B') M'.

    Methods that take a vector take a batch `[..., dim]` on the host; under JAX they see one point.
    """

    b: Float[Array, "dim rank"]

    @abc.abstractmethod
    def log_det(self) -> Float[Array, ""]:
        """log |det M|."""

    @abc.abstractmethod
    def solve(self, delta: Float[Array, "*batch dim"]) -> Float[Array, "*batch dim"]:
        """M^-1 delta."""

    @abc.abstractmethod
    def apply(self, t: Float[Array, "*batch dim"]) -> Float[Array, "*batch dim"]:
        """M t."""

    @abc.abstractmethod
    def transposed(self, score: Float[Array, "*batch dim"]) -> Float[Array, "*batch dim"]:
        """M' score."""

    @abc.abstractmethod
    def precision_diagonal(self) -> Float[Array, "dim"]:
        """The diagonal of S^-1."""

    @abc.abstractmethod
    def value_and_gradient(
        self,
    ) -> tuple[float, Float[np.ndarray, "dim"], Float[np.ndarray, "dim rank"]]:
        """`half_log_det` with its derivatives, on the host, for searches without autodiff.

        The second is 1 - D^2 diag(S^-1), which is one less the derivative in log D; the third is
        D S^-1 U, the derivative in D^-1 U.
        """

    def half_log_det(self) -> Float[Array, ""]:
        """log |S|^(1/2), nats."""
        lower = self._cholesky()
        xp = namespace(lower)
        return self.log_det() + xp.log(xp.diagonal(lower)).sum()

    def quadratic(self, delta: Float[Array, "*batch dim"]) -> Float[Array, "*batch"]:
        """delta' S^-1 delta."""
        return self._ridge(self.solve(delta))

    def whiten(self, delta: Float[Array, "*batch dim"]) -> Float[Array, "*batch dim"]:
        """root^-1 delta, for root = M (I + B B')^(1/2)."""
        return self._powered(self.solve(delta), _inverse_root_minus_one)

    def unwhiten(self, white: Float[Array, "*batch dim"]) -> Float[Array, "*batch dim"]:
        """root white."""
        return self.apply(self._powered(white, _root_minus_one))

    def whiten_score(self, score: Float[Array, "*batch dim"]) -> Float[Array, "*batch dim"]:
        """root' score."""
        return self._powered(self.transposed(score), _root_minus_one)

    def unwhiten_columns(self, columns: Float[Array, "dim m"]) -> Float[Array, "dim m"]:
        """root times each column."""
        if namespace(columns, self.b) is np:
            return self.unwhiten(columns.T).T
        return jax.vmap(self.unwhiten, in_axes=1, out_axes=1)(columns)

    def _ridge(self, v: Float[Array, "*batch dim"]) -> Float[Array, "*batch"]:
        """v' (I + B B')^-1 v = |v - B a|^2 + |a|^2, with a the ridge regression of v on B.

        A sum of squares: the textbook form |v|^2 - |..|^2 cancels where B is large.
        """
        lower = self._cholesky()
        a = solve_lower(lower, solve_lower(lower, (v @ self.b).T), transposed=True).T
        return ((v - a @ self.b.T) ** 2).sum(-1) + (a**2).sum(-1)

    def _leverage(self) -> Float[Array, "dim"]:
        """The diagonal of B (I + B'B)^-1 B'; one less it is that of (I + B B')^-1."""
        return (solve_lower(self._cholesky(), self.b.T) ** 2).sum(0)

    def _gram(self) -> Float[Array, "rank rank"]:
        """I + B'B."""
        xp = namespace(self.b)
        return xp.eye(self.b.shape[1], dtype=self.b.dtype) + self.b.T @ self.b

    def _cholesky(self) -> Float[Array, "rank rank"]:
        """The Cholesky factor of I + B'B."""
        gram = self._gram()
        if namespace(gram) is jnp:
            return jnp.linalg.cholesky(gram)
        try:
            return np.linalg.cholesky(gram)
        except np.linalg.LinAlgError:
            # B is not finite. NaN, as under JAX: a search then steps back, or says where it stands.
            return np.full_like(gram, np.nan)

    def _spectrum(self) -> tuple[Float[Array, "dim rank"], Float[Array, "rank"]]:
        """B V and the eigenvalues of B'B, V its eigenvectors."""
        gram = self.b.T @ self.b
        xp = namespace(gram)
        try:
            values, vectors = xp.linalg.eigh(gram)
        except np.linalg.LinAlgError:
            values, vectors = np.full_like(gram[0], np.nan), np.full_like(gram, np.nan)
        return self.b @ vectors, xp.maximum(values, 0.0)

    def _powered(
        self,
        v: Float[Array, "*batch dim"],
        minus_one: Callable[[Float[Array, "rank"]], Float[Array, "rank"]],
    ) -> Float[Array, "*batch dim"]:
        """(I + B B')^p v, where `minus_one(s)` is ((1 + s)^p - 1) / s: p = 1/2 or -1/2.

        Its derivative in B does not exist where B'B has equal eigenvalues, so densities use the
        Cholesky factor instead; whitening is only ever differentiated in v.
        """
        basis, values = self._spectrum()
        return v + ((v @ basis) * minus_one(values)) @ basis.T


@dataclasses.dataclass(frozen=True)
class Plain(AbstractForm):
    """M = D and B = D^-1 U."""

    log_diagonal: Float[Array, "dim"]

    @staticmethod
    def of(factor: Float[Array, "dim rank"], log_diagonal: Float[Array, "dim"]) -> "Plain":
        """The form of U and log D."""
        return Plain(factor * namespace(log_diagonal).exp(-log_diagonal)[:, None], log_diagonal)

    def log_det(self) -> Float[Array, ""]:
        return self.log_diagonal.sum()

    def solve(self, delta: Float[Array, "*batch dim"]) -> Float[Array, "*batch dim"]:
        return delta * namespace(self.log_diagonal).exp(-self.log_diagonal)

    def apply(self, t: Float[Array, "*batch dim"]) -> Float[Array, "*batch dim"]:
        return namespace(self.log_diagonal).exp(self.log_diagonal) * t

    def transposed(self, score: Float[Array, "*batch dim"]) -> Float[Array, "*batch dim"]:
        return self.apply(score)

    def precision_diagonal(self) -> Float[Array, "dim"]:
        return (1.0 - self._leverage()) * namespace(self.b).exp(-2 * self.log_diagonal)

    def value_and_gradient(
        self,
    ) -> tuple[float, Float[np.ndarray, "dim"], Float[np.ndarray, "dim rank"]]:
        gram = self._gram()
        pulled = np.linalg.solve(gram, self.b.T).T
        value = self.log_diagonal.sum() + 0.5 * np.linalg.slogdet(gram)[1]
        return float(value), np.sum(pulled * self.b, axis=1), pulled

    def unwhiten_columns(self, columns: Float[Array, "dim m"]) -> Float[Array, "dim m"]:
        basis, values = self._spectrum()
        moved = columns + (basis * _root_minus_one(values)[None, :]) @ (basis.T @ columns)
        return namespace(self.b).exp(self.log_diagonal)[:, None] * moved


@dataclasses.dataclass(frozen=True)
class Swapped(AbstractForm):
    """The form in which some coordinates have swapped their own noise for a factor's.

    Coordinate `pins[k]` then determines factor k. Compiled code wants arrays of one shape, so that
    each factor has a place in `pins`, taken or not.

    Attributes:
        log_diagonal: log D.
        factor: U.
        pins: of each factor the coordinate that determines it.
        taken: which factors have one.
        place: of each coordinate its factor; 0 where it has none.
        pinned: whether a coordinate is swapped.
        inverse: of the rows of U at the pins, with rows of the identity at factors without one.
        log_det_at_pins: log |det| of these rows.
        loadings: B with loadings of 1 in place of the D_i of the pins.
    """

    log_diagonal: Float[Array, "dim"]
    factor: Float[Array, "dim rank"]
    pins: Int[Array, "rank"]
    taken: Bool[Array, "rank"]
    place: Int[Array, "dim"]
    pinned: Bool[Array, "dim"]
    inverse: Float[Array, "rank rank"]
    log_det_at_pins: Float[Array, ""]
    loadings: Float[Array, "dim rank"]

    @staticmethod
    def of(factor: Float[Array, "dim rank"], log_diagonal: Float[Array, "dim"]) -> "Swapped":
        """The form of U and log D."""
        xp = namespace(factor, log_diagonal)
        diagonal = xp.exp(log_diagonal)
        # Constants to derivatives: S is the same function of U and D whatever swaps.
        pins, taken = pivots(*map(constant, (factor, diagonal)))
        swapped = (pins[None, :] == xp.arange(len(diagonal))[:, None]) & taken[None, :]
        pinned, place = swapped.any(axis=1), swapped.argmax(axis=1)
        at_pins = xp.where(taken[:, None], factor[pins], xp.eye(len(pins), dtype=factor.dtype))
        # Inverted as its transpose: rows in different units are then columns, whose units do not
        # mislead the elimination.
        inverse, log_det = xp.linalg.inv(at_pins.T).T, xp.linalg.slogdet(at_pins.T)[1]
        others = (factor / xp.where(pinned, 1.0, diagonal)[:, None]) @ inverse
        loadings = xp.where(pinned[:, None], -inverse[place], others)
        b = loadings * xp.where(taken, diagonal[pins], 1.0)[None, :]
        return Swapped(
            b, log_diagonal, factor, pins, taken, place, pinned, inverse, log_det, loadings
        )

    @property
    def own(self) -> Float[Array, "dim"]:
        """D, and 1 at the pins, where D may be zero and never divides."""
        xp = namespace(self.log_diagonal)
        return xp.where(self.pinned, 1.0, xp.exp(self.log_diagonal))

    def log_det(self) -> Float[Array, ""]:
        xp = namespace(self.b)
        return xp.where(self.pinned, 0.0, self.log_diagonal).sum() + self.log_det_at_pins

    def solve(self, delta: Float[Array, "*batch dim"]) -> Float[Array, "*batch dim"]:
        xp = namespace(delta, self.b)
        factors = self._at_pins(delta) @ self.inverse.T
        others = (delta - factors @ self.factor.T) / self.own
        return xp.where(self.pinned, factors[..., self.place], others)

    def apply(self, t: Float[Array, "*batch dim"]) -> Float[Array, "*batch dim"]:
        xp = namespace(t, self.b)
        return xp.where(self.pinned, 0.0, self.own * t) + self._at_pins(t) @ self.factor.T

    def transposed(self, score: Float[Array, "*batch dim"]) -> Float[Array, "*batch dim"]:
        xp = namespace(score, self.b)
        return xp.where(self.pinned, (score @ self.factor)[..., self.place], self.own * score)

    def precision_diagonal(self) -> Float[Array, "dim"]:
        xp = namespace(self.b)
        ridge = self._ridge if xp is np else jax.vmap(self._ridge)
        # Of a pin M^-1 e_i is a column of the loadings. The form of the other coordinates would
        # divide a difference of two numbers close to 1 by D_i^2.
        at_pins = ridge(self.loadings.T)[self.place]
        return xp.where(self.pinned, at_pins, (1.0 - self._leverage()) / self.own**2)

    def value_and_gradient(
        self,
    ) -> tuple[float, Float[np.ndarray, "dim"], Float[np.ndarray, "dim rank"]]:
        b, pins = np.asarray(self.b), np.asarray(self.pins)
        explained = np.where(self.pinned, 1.0 - self._ridge(b.T)[self.place], self._leverage())
        # Column k of U is column pins[k] of M where factor k is taken, and column k of M B where it
        # is not. S^-1 M = M'^-1 (I + B B')^-1, and S^-1 M B = M'^-1 B (I + B'B)^-1.
        shrunk = np.linalg.solve(self._gram(), b.T).T
        unit = np.zeros_like(b)
        unit[pins, np.arange(len(pins))] = 1.0
        columns = np.where(self.taken, unit - shrunk @ b[pins].T, shrunk)
        scaled = np.exp(self.log_diagonal)[:, None] * self._transposed_solve(columns.T).T
        return float(self.half_log_det()), explained, scaled

    def _at_pins(self, v: Float[Array, "*batch dim"]) -> Float[Array, "*batch rank"]:
        """The entries of v at the pins, and zeros at empty places."""
        return namespace(v, self.b).where(self.taken, v[..., self.pins], 0.0)

    def _transposed_solve(self, v: Float[np.ndarray, "n dim"]) -> Float[np.ndarray, "n dim"]:
        """M'^-1 v."""
        others = np.where(self.pinned, 0.0, v / self.own)
        at_pins = (self._at_pins(v) - others @ self.factor) * self.taken @ self.inverse
        return np.where(self.pinned, at_pins[:, self.place], others)


def in_form(
    factor: Float[Array, "dim rank"],
    log_diagonal: Float[Array, "dim"],
    use: Callable[[AbstractForm], T],
) -> T:
    """What `use` makes of the form of U and log D that keeps the digits."""
    xp = namespace(factor, log_diagonal)
    far = is_far(constant(factor), xp.exp(constant(log_diagonal)))
    if not isinstance(far, jax.core.Tracer):
        return use((Swapped if far else Plain).of(factor, log_diagonal))
    # Under vmap over members both are computed, and a derivative that is not finite in the one that
    # is not used would spoil the other's: so `Plain` then sees D = 1.
    harmless = jnp.where(far, 0.0, log_diagonal)
    return jax.lax.cond(
        far,
        lambda: use(Swapped.of(factor, log_diagonal)),
        lambda: use(Plain.of(factor, harmless)),
    )


def half_log_det_and_gradient(
    factor: Float[np.ndarray, "dim rank"], diagonal: Float[np.ndarray, "dim"]
) -> tuple[float, Float[np.ndarray, "dim"], Float[np.ndarray, "dim rank"]]:
    """Of U and D what `AbstractForm.value_and_gradient` gives."""
    log_diagonal = np.log(diagonal)
    form = (
        Swapped.of(factor, log_diagonal)
        if is_far(factor, diagonal)
        else Plain(factor / diagonal[:, None], log_diagonal)
    )
    return form.value_and_gradient()


def _root_minus_one(s: Float[Array, "rank"]) -> Float[Array, "rank"]:
    """(sqrt(1 + s) - 1) / s, without cancellation at small s."""
    return 1.0 / (namespace(s).sqrt(1.0 + s) + 1.0)


def _inverse_root_minus_one(s: Float[Array, "rank"]) -> Float[Array, "rank"]:
    """(1 / sqrt(1 + s) - 1) / s, without cancellation at small s."""
    root = namespace(s).sqrt(1.0 + s)
    return -1.0 / (root * (root + 1.0))


__all__ = ["AbstractForm", "Plain", "Swapped", "half_log_det_and_gradient", "in_form"]
