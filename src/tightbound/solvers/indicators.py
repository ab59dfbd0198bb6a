"""Mean-field VI for contaminated data: coordinate ascent on q(theta) and an indicator per point."""

import dataclasses
from typing import ClassVar

import numpy as np
import scipy.special as sp
from jaxtyping import Float

from .._types import Key
from ..estimators.clutter.local_gaussians import white_moments
from ..families.base import AbstractFamily
from ..families.gaussian import Gaussian
from ..objectives.base import AbstractObjective
from ..results import Result
from ..targets.base import AbstractTarget, require
from ..targets.sites import Contaminated, Kernels
from .base import AbstractSolver, Info, check_full_rank, check_no_objective

_PRECISION = 5e-5  # of `tol`: coordinate ascent converges linearly


@dataclasses.dataclass(frozen=True)
class IndicatorState:
    """q in the coordinates where the noise is isotropic.

    Attributes:
        kernels: of the points.
        mean: of q(theta).
        cov: of q(theta).
        inlier: each point's probability to be an inlier.
        tol: accuracy asked for, in posterior sds.
        bound: that is climbed, nats.
        result: how the run has ended.
    """

    kernels: Kernels
    mean: Float[np.ndarray, "dim"]
    cov: Float[np.ndarray, "dim dim"]
    inlier: Float[np.ndarray, "rows"]
    tol: float
    bound: float = -np.inf
    result: Result | None = None


class IndicatorMeanField(AbstractSolver):
    """Coordinate ascent on q(theta) prod_i q(z_i), z_i: whether point i is an inlier.

    Exact for each factor in turn, from r = 1/2:

        r_i = sigma(a_i - (|y_i - m|^2 + tr S) / (2 s_i)),
        S^-1 = sum r_i / s_i + S0^-1,   m = S (sum r_i y_i / s_i + S0^-1 m0).

    Monotone in the bound sum_i softplus(.) + E log prior + entropy, which is what the trace holds:
    a lower bound on the ELBO of q(theta) alone. Its covariance is too small by a factor that no
    amount of data mends, about 1/2 in the clutter paper's setting: q(theta) is taken to know which
    points are inliers. It is here for comparison: any other solver of contaminated data is closer.

    Source: Bishop 2006, section 10.1, for the likelihood of Minka 2001, section 3.2.1.
    """

    compiled: ClassVar[bool] = False

    def check(
        self, target: AbstractTarget, q: AbstractFamily, objective: AbstractObjective | None
    ) -> None:
        require(self, target, Contaminated)
        check_no_objective(self, objective, "climbs its own bound")
        check_full_rank(self, q)

    def init(
        self,
        target: AbstractTarget,
        q: AbstractFamily,
        objective: AbstractObjective | None,
        key: Key,
        tol: float,
    ) -> IndicatorState:
        k = require(self, target, Contaminated).kernels()
        inlier = np.full(len(k.points), 0.5)
        return IndicatorState(k, *_gaussian_factor(k, inlier), inlier, tol)

    def step(
        self,
        target: AbstractTarget,
        q: AbstractFamily,
        objective: AbstractObjective | None,
        state: IndicatorState,
        key: Key,
    ) -> tuple[AbstractTarget, AbstractFamily, IndicatorState, Info]:
        """All indicators, then q(theta)."""
        k = state.kernels
        inlier = sp.expit(_logits(k, state.mean, state.cov))
        mean, cov = _gaussian_factor(k, inlier)
        root = np.linalg.cholesky(cov)
        moved = float(np.sqrt(np.mean(np.linalg.solve(root, mean - state.mean) ** 2)))
        turned = np.linalg.solve(root, np.linalg.solve(root, state.cov).T)
        change = max(moved, float(np.abs(turned - np.eye(k.dim)).max()))
        bound = _bound(require(self, target, Contaminated), k, mean, root)
        result = Result.converged if change < _PRECISION * state.tol else None
        new = dataclasses.replace(
            state, mean=mean, cov=cov, inlier=inlier, bound=bound, result=result
        )
        return (
            target,
            Gaussian.from_root(k.root @ mean, k.root @ root),
            new,
            Info(np.float64(-bound), np.float64(change), 1),
        )

    def done(self, state: IndicatorState) -> Result | None:
        return state.result


def _logits(
    k: Kernels, mean: Float[np.ndarray, "dim"], cov: Float[np.ndarray, "dim dim"]
) -> Float[np.ndarray, "rows"]:
    """E_q of the log odds that each point is an inlier."""
    return k.own_logits - 0.5 * (np.sum((k.points - mean) ** 2, axis=1) + np.trace(cov)) / k.scales


def _gaussian_factor(
    k: Kernels, inlier: Float[np.ndarray, "rows"]
) -> tuple[Float[np.ndarray, "dim"], Float[np.ndarray, "dim dim"]]:
    """Mean and covariance of q(theta), given the points' probabilities to be inliers."""
    share = k.weights * inlier / k.scales
    cov = np.linalg.inv(np.sum(share) * np.eye(k.dim) + k.prior_precision)
    return cov @ (share @ k.points + k.prior_precision @ k.prior_mean), cov


def _bound(
    target: Contaminated,
    k: Kernels,
    mean: Float[np.ndarray, "dim"],
    root: Float[np.ndarray, "dim dim"],
) -> float:
    """The bound with the best indicators for this q(theta).

    Their entropy and energy sum to a softplus each.
    """

    # `white_moments` adds prior and entropy. Nobody reads its gradient and its curvature.
    def sites(
        centre: Float[np.ndarray, "dim"], cov: Float[np.ndarray, "dim dim"]
    ) -> tuple[float, Float[np.ndarray, "dim"], Float[np.ndarray, "dim dim"]]:
        value = float(k.weights @ np.logaddexp(0.0, _logits(k, centre, cov)))
        return value, np.zeros(k.dim), np.zeros((k.dim, k.dim))

    return float(white_moments(target, k, k.root @ mean, k.root @ root, sites, 0.0).elbo)


__all__ = ["IndicatorMeanField", "IndicatorState"]
