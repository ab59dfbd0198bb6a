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

_CHUNK = 16_384  # points whose intermediates stay in the second-level cache: a third of the time at a million points
_LEAST_LOG_ODDS = -300.0  # below it a point is no inlier, and its exponential would overflow when squared


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


@dataclasses.dataclass(frozen=True)
class LineSums:
    """Sums over the points in one dimension, each weighted by weight_i / h_i, with d_i = y_i - mean: all that a step needs.

    With B, C, D of the paper: b = sum B, bd = sum B d, c = sum C, and e0, e1, e2 = sum D d^k / (h + v) for k = 0, 1, 2.
    The gradient of E_q[sum log L] in the mean is bd, its expected curvature c - e2.
    """

    b: float
    bd: float
    c: float
    e0: float
    e1: float
    e2: float


def line_sums(k: Kernels, mean: float, v: float, widening: float = 1.0) -> LineSums:
    """The paper's sums for q = N(mean, v) and kernels of variance h_i = widening * s_i: 2 exp, a sqrt, a division a point.

    With r = h u^2 / 2, E = 1 / odds at theta* and T = 1 + E the paper's p is 1 / T, its vhat T^2 R for
    R = 1 / (T^2 + E (T + 2 r) v / h), and M = sqrt(R) exp((R - 1) r v / h): no intermediate is divided twice.

    Source: Popov 2024, section 4; clutter spec, section 2.1.
    """
    total = np.zeros(6)
    for start in range(0, len(k.points), _CHUNK):
        total += _line_chunk(k, slice(start, start + _CHUNK), mean, v, widening)
    if k.common_weight is not None:
        total *= k.common_weight
    if k.common_scale is not None:
        h = widening * k.common_scale
        total /= h
        total[3:] /= h + v
    return LineSums(*total.tolist())


def _line_chunk(k: Kernels, part: slice, mean: float, v: float, widening: float) -> tuple[float, ...]:
    """The six sums over some points, without the factors that all points share; in place, to stay in the cache."""
    h: Any = widening * (k.scales[part] if k.common_scale is None else k.common_scale)
    ratio, wide = v / h, h + v
    d = k.points[part, 0] - mean
    r = d * d
    r *= 0.5 * h / wide**2
    odds = r - k.own_logits[part]  # of being background, E
    odds += 0.5 * np.log(widening)
    np.minimum(odds, -_LEAST_LOG_ODDS, out=odds)
    np.exp(odds, out=odds)
    t = odds + 1.0
    rest = t + r
    rest += r
    rest *= odds
    rest *= ratio
    rest += t * t
    np.reciprocal(rest, out=rest)  # R
    mass = np.subtract(rest, 1.0, out=odds)
    mass *= r
    mass *= ratio
    np.exp(mass, out=mass)
    mass *= np.sqrt(rest)
    if k.common_weight is None:
        mass *= k.weights[part]
    if k.common_scale is None:
        mass /= h
    rest *= t  # p vhat
    b = rest * (v / wide)
    b += h / wide
    b *= mass
    mass *= rest  # C / T
    c = mass @ t
    rest *= b
    e = np.subtract(b, rest, out=rest)
    if k.common_scale is None:
        e /= wide
    np.multiply(d, d, out=r)
    return np.sum(b), b @ d, c, np.sum(e), e @ d, e @ r


def local_gaussians(k: Kernels, mean: np.ndarray, cov: np.ndarray, widening: float = 1.0) -> LocalGaussians:
    """The completion of the square, for q = N(mean `[D]`, cov `[D, D]`) and kernels of variance h_i = widening * s_i.

    With S = cov, d = y - mean, u = (S + h)^-1 d, p = sigma(a - h u'u / 2):
    P = S^-1 + (1 - p) / h + p (1 - p) u u', m = mean + S u - p P^-1 u, V = P^-1,
    M = p |S P|^-1/2 exp(-u'S u / 2 + p^2 u' P^-1 u / 2);
    gradient = sum M (y - m) / h, curvature = sym{S^-1 sum M [V - (m - mean)(y - m)'] / h}. Cost n D^2 + D^3.

    Source: Popov 2024, section 4 (one dimension); clutter spec, section 2.3 (D dimensions).
    """
    s, vectors = np.linalg.eigh(cov)
    n, dim = k.points.shape
    mass, shift = np.empty(n), np.empty((n, dim))
    gradient, half = np.zeros(dim), np.zeros((dim, dim))
    step = max(64, _CHUNK // (2 * dim))
    for start in range(0, n, step):
        part = slice(start, start + step)
        mass[part], moved, slope, bend = _eigen_chunk(k, part, mean, s, vectors, widening)
        shift[part] = (vectors @ moved).T
        gradient += slope
        half += bend
    curvature = vectors @ (0.5 * (half + half.T)) @ vectors.T
    return LocalGaussians(mass, shift, vectors @ gradient, curvature)


def _eigen_chunk(
    k: Kernels, part: slice, mean: np.ndarray, s: np.ndarray, vectors: np.ndarray, widening: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Of some points, in the eigenbasis of the covariance: mass `[m]`, shift `[D, m]`, and their shares of the two sums.

    Coordinates are rows, so that each operation runs along the points.
    """
    h = widening * (k.scales[part] if k.common_scale is None else k.common_scale)
    s = s[:, None]
    d = vectors.T @ (k.points[part] - mean).T
    u = d / (s + h)
    background = 0.5 * h * _squares(u) - k.own_logits[part] + 0.5 * k.dim * np.log(widening)
    odds = np.exp(np.minimum(background, -_LEAST_LOG_ODDS))
    p = 1.0 / (1.0 + odds)
    other = odds * p
    loose = 1.0 + other * (s / h)  # s times the diagonal of P
    soft = s * u / loose
    length = np.einsum("dm,dm->m", u, soft)
    grown = 1.0 + p * other * length
    size = np.prod(loose, axis=0) * grown  # may overflow to a mass of 0, which is right
    pull = p / grown
    mass = p / np.sqrt(size) * np.exp(0.5 * (p * pull * length - np.einsum("dm,dm,d->m", u, u, s[:, 0])))
    shift = s * u - pull * soft
    residual = d - shift
    share = k.weights[part] * mass / h
    stiff = loose
    np.divide(s, loose, out=stiff)
    spread = np.diag(stiff @ share) - (soft * (share * other * pull)) @ soft.T
    return mass, shift, residual @ share, (spread - (shift * share) @ residual.T) / s


def _squares(u: np.ndarray) -> np.ndarray:
    return np.einsum("dm,dm->m", u, u)


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


__all__ = ["LineSums", "LocalGaussians", "LocalQuadratic", "cubic_gaussians", "line_sums", "local_gaussians"]
