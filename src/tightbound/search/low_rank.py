"""The search of a low-rank Gaussian on fixed draws: L-BFGS on mean, diagonal and factor."""

import dataclasses

import numpy as np
from jaxtyping import Float

from ..families.woodbury import half_log_det_and_gradient
from .lbfgs import Evaluate, LockstepSearch

_ADVANCES = 10  # evaluations of the design per step of the loop
_MEMORY = 8  # pairs: at the dimensions it is for, each is as large as the search vector itself
_WIDEST = 40.0  # |log of the change of a scale|: a trial step beyond it would overflow


@dataclasses.dataclass(frozen=True)
class Coordinates:
    """Search variables as one vector, in units of the start's sds.

    It is (a, b, V) in mean = mean0 + sd0 a, log D = log sd0 + b, U = sd0 V.

    Attributes:
        mean: of the start.
        sd: marginal sds of the start.
        rank: columns of U.
    """

    mean: Float[np.ndarray, "dim"]
    sd: Float[np.ndarray, "dim"]
    rank: int

    @property
    def dim(self) -> int:
        return len(self.mean)

    def split(
        self, x: Float[np.ndarray, "vector"]
    ) -> tuple[Float[np.ndarray, "dim"], Float[np.ndarray, "dim"], Float[np.ndarray, "dim rank"]]:
        """(mean, D, U) of the search vector."""
        a, b, v = np.split(x, [self.dim, 2 * self.dim])
        return (
            self.mean + self.sd * a,
            self.sd * np.exp(b),
            self.sd[:, None] * v.reshape(self.dim, self.rank),
        )

    def join(
        self,
        mean: Float[np.ndarray, "dim"],
        diagonal: Float[np.ndarray, "dim"],
        factor: Float[np.ndarray, "dim rank"],
    ) -> Float[np.ndarray, "vector"]:
        """The inverse of `split`."""
        a, b = (mean - self.mean) / self.sd, np.log(diagonal / self.sd)
        v = factor / self.sd[:, None]
        return np.concatenate([a, b, v.ravel()])


def fixed_draw_elbo(
    evaluate: Evaluate,
    at: Coordinates,
    x: Float[np.ndarray, "vector"],
    noise: Float[np.ndarray, "n noise"],
) -> tuple[float, Float[np.ndarray, "vector"], Float[np.ndarray, "some dim"]]:
    """(ELBO, its gradient in x, scores) over the draws mean + D noise[:, :d] + U noise[:, d:].

    d ELBO / d mean = E g; / d log D = E[g D e] + D^2 diag(S^-1); / d U = E[g e'] + S^-1 U, with S =
    D^2 + U U'. Where a draw has no finite density the ELBO is -inf; scores are then those there
    are.
    """
    if not np.all(np.abs(x[at.dim : 2 * at.dim]) < _WIDEST):
        return -np.inf, np.zeros_like(x), np.empty((0, at.dim))
    mean, diagonal, factor = at.split(x)
    own, shared = noise[:, : at.dim], noise[:, at.dim :]
    values, scores = evaluate(mean + diagonal * own + shared @ factor.T)
    if not (np.all(np.isfinite(values)) and np.all(np.isfinite(scores))):
        return -np.inf, np.zeros_like(x), scores
    half_log_det, explained, pulled = half_log_det_and_gradient(factor, diagonal)
    entropy = half_log_det + 0.5 * at.dim * (1 + np.log(2 * np.pi))
    count = len(values)
    d_mean = scores.mean(axis=0)
    d_log = np.einsum("ij,ij->j", scores, own) / count * diagonal + 1.0 - explained
    d_factor = scores.T @ shared / count + pulled / diagonal[:, None]
    gradient = np.concatenate([at.sd * d_mean, d_log, (at.sd[:, None] * d_factor).ravel()])
    return float(values.mean() + entropy), gradient, scores


class LowRankSearch:
    """L-BFGS on mean, diagonal and factor of a low-rank q over fixed draws.

    Arguments:
        evaluate: values and scores of the log density.
        at: the coordinates of the search.
        x: where it begins.
        noise: standard normals of the draws, the factor's last.
        gtol: square root of the nats that it may leave on the table.
    """

    def __init__(
        self,
        evaluate: Evaluate,
        at: Coordinates,
        x: Float[np.ndarray, "vector"],
        noise: Float[np.ndarray, "n noise"],
        gtol: float,
    ):
        self.at, self.noise, self.density = at, noise, evaluate
        self._search = LockstepSearch(self._evaluated, x[None], _MEMORY, gtol)
        self.usable = len(self._search.x) == 1
        self._start = x

    @property
    def loss(self) -> float:
        """Minus the ELBO on the draws, nats."""
        return float(self._search.f[0]) if self.usable else np.inf

    @property
    def mean(self) -> Float[np.ndarray, "dim"]:
        """Of q."""
        return self.parts()[0]

    @property
    def scores(self) -> Float[np.ndarray, "n dim"]:
        """Of the log density at the draws, which L-BFGS does not keep: evaluated once more."""
        return fixed_draw_elbo(self.density, self.at, self._search.x[0], self.noise)[2]

    def parts(
        self,
    ) -> tuple[Float[np.ndarray, "dim"], Float[np.ndarray, "dim"], Float[np.ndarray, "dim rank"]]:
        """(mean, D, U) of q."""
        return self.at.split(self._search.x[0] if self.usable else self._start)

    def advance(self) -> bool:
        """A few evaluations; False when the search has ended."""
        return all(self._search.advance(10_000) for _ in range(_ADVANCES))

    def _evaluated(
        self, points: Float[np.ndarray, "lanes vector"]
    ) -> tuple[Float[np.ndarray, "lanes"], Float[np.ndarray, "lanes vector"]]:
        parts = [fixed_draw_elbo(self.density, self.at, point, self.noise)[:2] for point in points]
        return np.array([v for v, _ in parts]), np.stack([g for _, g in parts])


__all__ = ["Coordinates", "LowRankSearch", "fixed_draw_elbo"]
