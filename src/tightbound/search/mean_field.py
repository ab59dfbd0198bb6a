"""The search of a mean-field Gaussian on fixed draws: trust-region Newton (DADVI).

With products of the Hessian and a vector, never the Hessian.
"""

import dataclasses

import numpy as np
from jaxtyping import Float

from ..targets.batched import BatchedDensity
from .newton_cg import next_radius, steihaug

_MOST_PRODUCTS = 100  # per step, each as dear as two evaluations of the design
_SMALLEST = 1e-9  # radius of the trust region
_ROUNDING = 1e-12  # of the loss: smaller decreases cannot be told from noise
_LARGEST_FACTOR = 40.0  # |log of the change of an sd| in one step: beyond it exp overflows


@dataclasses.dataclass
class _Point:
    """q = N(mean, diag(sd)^2) on the draws.

    Attributes:
        mean: of q.
        sd: of q.
        points: the draws.
        scores: of the log density at them.
        loss: -ELBO, nats; infinite where a draw has no finite density.
        gradient: of the loss in (mean / sd, log sd).
    """

    mean: Float[np.ndarray, "dim"]
    sd: Float[np.ndarray, "dim"]
    points: Float[np.ndarray, "n dim"]
    scores: Float[np.ndarray, "n dim"]
    loss: float
    gradient: Float[np.ndarray, "vector"]


class MeanFieldSearch:
    """Minimise -E log p(mean + sd e) - sum log sd over fixed draws e, from a start of any scale.

    Each step is taken in units of the sds at hand, so that neither the units of the coordinates nor
    a start that is too wide or too narrow matter: at the optimum the diagonal of the Hessian in the
    means is 1.

    Arguments:
        density: the log density.
        mean: of the start.
        sd: of the start.
        noise: the draws e.
        gtol: square root of the nats that it may leave on the table.
    """

    def __init__(
        self,
        density: BatchedDensity,
        mean: Float[np.ndarray, "dim"],
        sd: Float[np.ndarray, "dim"],
        noise: Float[np.ndarray, "n dim"],
        gtol: float,
    ):
        self.density, self.noise, self.gtol = density, noise, gtol
        self.radius = float(np.sqrt(2 * len(mean)))  # every mean and log sd by one
        self.at = self._evaluated(mean, sd)
        self.usable = bool(np.isfinite(self.at.loss))
        self.running = self.usable
        self.converged = False

    @property
    def loss(self) -> float:
        """Minus the ELBO on the draws, nats."""
        return self.at.loss

    @property
    def mean(self) -> Float[np.ndarray, "dim"]:
        """Of q."""
        return self.at.mean

    @property
    def scores(self) -> Float[np.ndarray, "n dim"]:
        """Of the log density at the draws."""
        return self.at.scores

    def parts(
        self,
    ) -> tuple[Float[np.ndarray, "dim"], Float[np.ndarray, "dim"], Float[np.ndarray, "dim rank"]]:
        """(mean, D, U) of q: no U."""
        return self.at.mean, self.at.sd, np.zeros((len(self.at.mean), 0))

    def advance(self) -> bool:
        """One step; False when the search has ended."""
        if not self.running:
            return False
        # The forcing term of an inexact Newton method: solve roughly while far, well when near, so
        # that convergence stays superlinear (Nocedal & Wright 2006, eq. 7.3).
        size = float(np.linalg.norm(self.at.gradient))
        step = steihaug(
            self.at.gradient,
            self._product,
            self.radius,
            min(0.3, np.sqrt(size)) * size,
            _MOST_PRODUCTS,
        )
        little = 2.0 * step.predicted <= max(self.gtol**2, _ROUNDING * abs(self.at.loss))
        self.converged = step.inside and little
        if not self.converged:
            a, b = np.split(step.move, 2)
            new = self._evaluated(
                self.at.mean + self.at.sd * a,
                self.at.sd * np.exp(np.clip(b, None, _LARGEST_FACTOR)),
            )
            self.radius, taken = next_radius(self.radius, step, self.at.loss - new.loss)
            self.at = new if taken else self.at
        self.running = not self.converged and self.radius > _SMALLEST
        return self.running

    def _evaluated(self, mean: Float[np.ndarray, "dim"], sd: Float[np.ndarray, "dim"]) -> _Point:
        points = mean + sd * self.noise
        values, scores = self.density(points)
        if not (np.all(np.isfinite(values)) and np.all(np.isfinite(scores))):
            return _Point(mean, sd, points, scores, np.inf, np.zeros(2 * len(mean)))
        entropy = float(np.log(sd).sum()) + 0.5 * len(mean) * (1.0 + np.log(2 * np.pi))
        pull = np.mean(scores * self.noise, axis=0) * sd
        gradient = -np.concatenate([sd * scores.mean(axis=0), pull + 1.0])
        return _Point(mean, sd, points, scores, -float(values.mean()) - entropy, gradient)

    def _product(self, v: Float[np.ndarray, "vector"]) -> Float[np.ndarray, "vector"]:
        """The Hessian of the loss in (mean / sd, log sd) times v."""
        at, (a, b) = self.at, np.split(v, 2)
        h = self.density.hessian_products(at.points, at.sd * (a + b * self.noise))
        pull = np.mean(at.scores * self.noise, axis=0) * at.sd
        return -np.concatenate(
            [at.sd * h.mean(axis=0), at.sd * np.mean(h * self.noise, axis=0) + pull * b]
        )


__all__ = ["MeanFieldSearch"]
