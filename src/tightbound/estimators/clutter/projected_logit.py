"""Each point's log odds under q as a Gaussian: 1-D quadratures in any dimension."""

import equinox as eqx
import numpy as np
import scipy.special as sp
from jaxtyping import Float

from ..._types import Key, Validated
from ...families.base import AbstractFamily
from ...results import PairingError
from ...targets.base import require
from ...targets.sites import Contaminated, Kernels
from ..base import Moments
from .local_gaussians import AbstractSiteMoments, SiteSums, white_moments

_CHUNK = 4_096  # points whose intermediates stay in the second-level cache
# Sd of the log odds below which Stein's quotient loses its digits and the derivative is used
_SMALL = 1e-5


class ProjectedLogit(AbstractSiteMoments):
    """E_q softplus(y_i), with the log odds y_i = a_i - |x_i - theta|^2 / (2 s_i) as a Gaussian.

    It has their exact mean and variance, those of a quadratic form in Gaussian variables: mean = a
    - (d'd + tr S) / (2 s), variance = tr(S^2) / (2 s^2) + d'S d / s^2, and `nodes` Gauss-Hermite
    nodes in y: `nodes` exponentials a point, whatever the dimension. The sum is a function of mean
    and covariance whose gradients are used as they are, so NaturalGradient climbs it monotonically;
    it is close to the ELBO and not a bound on it. As S goes to 0 it is the bound of mean-field VI
    with indicators. The more dimensions, the better: within 5e-5 nat of the best ELBO in 5
    dimensions, 2e-6 in 10 (medians of 12 data sets). Not for one dimension, where log odds under q
    are far from Gaussian and Laplace is better: use GaussHermite there, and in two.

    Attributes:
        nodes: Gauss-Hermite nodes for each point's log odds.
    """

    nodes: int = eqx.field(default=5, static=True)

    def __check_init__(self):
        if not 2 <= self.nodes <= 64:
            raise ValueError(
                f"ProjectedLogit: `nodes` must lie between 2 and 64, got {self.nodes}."
            )

    def prepare(
        self, target: Validated[Contaminated, "require"], q: AbstractFamily | None, key: Key | None
    ) -> Kernels:
        """The kernels of the target.

        Raises:
            PairingError: the target is not contaminated data, or a point cannot be background (its
                log odds are infinite).
        """
        k = require(self, target, Contaminated).kernels()
        if not np.all(np.isfinite(k.own_logits)):
            raise PairingError(
                "ProjectedLogit needs finite log odds, but some point has a background density of"
                " zero; give it a small one, or use FixedDesign or EP."
            )
        return k

    def moments(
        self,
        target: Contaminated,
        mean: Float[np.ndarray, "dim"],
        root: Float[np.ndarray, "dim dim"],
        design: Kernels,
    ) -> Moments:
        """Whitened moments of the approximated log p under N(mean, root root'), prior included."""
        return white_moments(
            target, design, mean, root, lambda m, cov: _sites(design, m, cov, self.nodes), np.nan
        )


def _sites(
    k: Kernels, mean: Float[np.ndarray, "dim"], cov: Float[np.ndarray, "dim dim"], nodes: int
) -> SiteSums:
    """E_q of sum weight softplus, its gradient in the mean, and -2 times that in the covariance."""
    u, w = np.polynomial.hermite_e.hermegauss(nodes)
    w = w / w.sum()
    s, vectors = np.linalg.eigh(cov)
    value, gradient, half = 0.0, np.zeros(k.dim), np.zeros((k.dim, k.dim))
    for start in range(0, len(k.points), _CHUNK):
        part = slice(start, start + _CHUNK)
        h, weights = k.scales[part], k.weights[part]
        d = (k.points[part] - mean) @ vectors
        centre = k.own_logits[part] - 0.5 * (np.sum(d**2, axis=1) + s.sum()) / h
        sd = np.sqrt(0.5 * (s @ s) + d**2 @ s) / h
        y = centre[:, None] + sd[:, None] * u
        p = sp.expit(y)
        inlier = p @ w
        # E sigma'(y): by Stein's identity E[sigma(y) u] / sd, which needs no second evaluation.
        slope = np.where(sd < _SMALL, (p * (1 - p)) @ w, (p @ (w * u)) / np.maximum(sd, 1e-300))
        value += float(weights @ (np.logaddexp(0.0, y) @ w))
        pull, bend = weights * inlier / h, weights * slope / h**2
        gradient += d.T @ pull - s * (d.T @ bend)
        half += np.diag(np.sum(pull) - s * np.sum(bend)) - (d * bend[:, None]).T @ d
    return value, vectors @ gradient, vectors @ half @ vectors.T


__all__ = ["ProjectedLogit"]
