"""The clutter paper's estimator: expectations of the score through a Gaussian for each site's tilted distribution."""

import dataclasses
from typing import Any, ClassVar

import equinox as eqx
import numpy as np
import scipy.special as sp

from ..objectives.base import AbstractObjective
from ..results import PairingError
from ..targets.base import require
from ..targets.sites import Contaminated, Kernels
from .base import AbstractEstimator, Moments


@dataclasses.dataclass(frozen=True)
class LocalGaussians:
    """q pi_i ~= M_i N(m_i, V_i), and what follows for sum_i weight_i log L_i, in the kernels' isotropic coordinates.

    Attributes:
        mass: M_i ~= E_q[pi_i], the probability that point i is an inlier, `[n]`.
        shift: m_i - mean, `[n, D]`.
        gradient: E_q of the gradient of sum_i weight_i log L_i, `[D]`, without the prior.
        curvature: minus E_q of its Hessian, `[D, D]`, symmetric, without the prior.
    """

    mass: np.ndarray
    shift: np.ndarray
    gradient: np.ndarray
    curvature: np.ndarray


def local_gaussians(k: Kernels, mean: np.ndarray, cov: np.ndarray, widening: float = 1.0) -> LocalGaussians:
    """The completion of the square, for q = N(mean `[D]`, cov `[D, D]`) and kernels of variance h_i = widening * s_i.

    With S = cov, d = y - mean, u = (S + h)^-1 d, p = sigma(a - h u'u / 2):
    P = S^-1 + (1 - p) / h + p (1 - p) u u', m = mean + S u - p P^-1 u, V = P^-1,
    M = p |S P|^-1/2 exp(-u'S u / 2 + p^2 u' P^-1 u / 2);
    gradient = sum M (y - m) / h, curvature = sym{S^-1 sum M [V - (m - mean)(y - m)'] / h}. Cost n D + D^3.

    Source: Popov 2024, section 4 (one dimension); clutter spec, section 2.3 (D dimensions).
    """
    s, vectors = np.linalg.eigh(cov)
    h = (widening * k.scales)[:, None]
    d = (k.points - mean) @ vectors
    u = d / (s + h)
    p = sp.expit(k.logits(widening) - 0.5 * h[:, 0] * np.sum(u**2, axis=1))
    bend = p * (1 - p)
    stiff = 1 / s + (1 - p)[:, None] / h
    soft = u / stiff
    length = np.sum(u * soft, axis=1)
    pull = soft / (1 + bend * length)[:, None]  # P^-1 u
    log_mass = -0.5 * (np.sum(np.log1p((1 - p)[:, None] * s / h), axis=1) + np.log1p(bend * length))
    log_mass += -0.5 * np.sum(s * u**2, axis=1) + 0.5 * p**2 * length / (1 + bend * length)
    mass = p * np.exp(log_mass)
    shift = s * u - p[:, None] * pull
    residual = d - shift
    share = (k.weights * mass)[:, None] / h
    spread = np.diag(np.sum(share / stiff, axis=0)) - (soft * share * (bend / (1 + bend * length))[:, None]).T @ soft
    half = (spread - (share * shift).T @ residual) / s[:, None]
    curvature = vectors @ (0.5 * (half + half.T)) @ vectors.T
    return LocalGaussians(mass, shift @ vectors.T, vectors @ np.sum(share * residual, axis=0), curvature)


def cubic_gaussians(k: Kernels, mean: np.ndarray, cov: np.ndarray) -> LocalGaussians:
    """`local_gaussians` in one dimension with the neglected third derivative of log L_i put back to first order.

    With e = x - theta*, z = -e / sqrt(h), Q = p (1 - p): f3 = [3 Q z - Q (1 - 2 p) z^3] / h^1.5 and weight 1 - f3 y^3 / 6,
    y = theta - theta*. Reduces the excess KL 15 to 1400 times where v / vg < .3; use it for v / vg up to about 2.

    Source: clutter spec, section 2.5.
    """
    base = local_gaussians(k, mean, cov)
    v, h = float(cov[0, 0]), k.scales
    d = k.points[:, 0] - mean[0]
    u = d / (v + h)
    p = sp.expit(k.logits() - 0.5 * h * u**2)
    local = v * h / ((1 - p) * (p * h * u**2 + 1) * v + h)
    e, delta = d - v * u, base.shift[:, 0] - v * u
    z, bend = -e / np.sqrt(h), p * (1 - p)
    third = (3 * bend * z - bend * (1 - 2 * p) * z**3) / h**1.5
    raw = [np.ones_like(delta), delta]
    for j in range(2, 6):
        raw.append(delta * raw[-1] + (j - 1) * local * raw[-2])
    m0, m1, m2 = (raw[j] - third / 6 * raw[j + 3] for j in range(3))
    first = base.mass * (e * m0 - m1)
    second = base.mass * (e * v * u * m0 + (e - v * u) * m1 - m2)
    gradient = np.sum(k.weights * first / h)
    curvature = -np.sum(k.weights * second / h) / v
    return LocalGaussians(base.mass * m0, base.shift, np.array([gradient]), np.array([[curvature]]))


class LocalQuadratic(AbstractEstimator):
    """The analytic approximation of the ELBO gradient for contaminated data: closed form, one sigmoid and one exp a point.

    The denominator of each site's responsibility is replaced by the exponential of its second-order Taylor polynomial at
    the mode of q times the kernel. The error of the variance gradient is of relative order v / vg: q ends up
    overconfident by about .35 v / vg, as Laplace's does; `cubic` mends most of that in one dimension. It has no ELBO
    value, so NaturalGradient takes its steps unchecked. The honest alternatives: GaussHermite in one or two dimensions (5
    exponentials a point, all digits, monotone), EP. Use this one for starts, and where each microsecond counts.

    Source: Popov 2024 (arXiv 2404.10550), section 4; full covariance and cubic term: clutter spec, sections 2.3 and 2.5.

    Attributes:
        cubic: put the third derivative back to first order; one dimension only.
    """

    cubic: bool = eqx.field(default=False, static=True)
    unbiased_for: ClassVar[tuple[type[AbstractObjective], ...]] = ()

    def check(self, target: Any, q: Any, objective: AbstractObjective | None) -> None:
        raise PairingError(
            "LocalQuadratic gives moments and no loss, so a gradient solver cannot use it; use "
            "tb.solvers.NaturalGradient(LocalQuadratic()), or Pathwise with this solver."
        )

    def prepare(self, target: Any, q: Any, key: Any) -> Kernels:
        """The kernels of the target.

        Raises:
            PairingError: the target is not contaminated data, or `cubic` in more than one dimension.
        """
        require(self, target, Contaminated)
        if self.cubic and q.dim > 1:
            raise PairingError(f"LocalQuadratic: `cubic` is for one dimension, q has {q.dim}; leave it out.")
        return target.kernels()

    def surrogate(self, objective: AbstractObjective, target: Any, q: Any, state: Any, key: Any) -> tuple[Any, Any]:
        self.check(target, q, objective)
        raise AssertionError("unreachable")

    def moments(self, target: Any, mean: np.ndarray, root: np.ndarray, design: Kernels) -> Moments:
        """Whitened moments of log p under N(mean, root root'), prior included; the ELBO is NaN."""
        k = design
        centre, white_root = np.linalg.solve(k.root, mean), np.linalg.solve(k.root, root)
        sites = (cubic_gaussians if self.cubic else local_gaussians)(k, centre, white_root @ white_root.T)
        gradient = white_root.T @ (sites.gradient + k.prior_precision @ (k.prior_mean - centre))
        curvature = white_root.T @ (sites.curvature + k.prior_precision) @ white_root
        return Moments(
            elbo=np.asarray(np.nan),
            elbo_stderr=np.asarray(np.nan),
            gradient=gradient,
            gradient_spread=gradient[None, :],
            curvature=0.5 * (curvature + curvature.T),
            curvature_stderr=np.asarray(0.0),
            evaluations=1,
            finite=bool(np.all(np.isfinite(gradient)) and np.all(np.isfinite(curvature))),
        )


__all__ = ["LocalGaussians", "LocalQuadratic", "cubic_gaussians", "local_gaussians"]
