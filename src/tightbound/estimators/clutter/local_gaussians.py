"""The completed square behind the clutter paper's analytic gradient.

q times the tilt of each site as a Gaussian, point by point.
"""

import dataclasses
from collections.abc import Callable
from typing import NoReturn, TypeAlias

import numpy as np
from jaxtyping import Float

from ..._types import Key, PyTree, Scalar, Validated
from ...families.base import AbstractFamily
from ...objectives.base import AbstractObjective
from ...results import PairingError
from ...targets.base import AbstractTarget
from ...targets.sites import Contaminated, Kernels
from ..base import AbstractMomentEstimator, Moments

# Points whose intermediates stay in the second-level cache: a third of the time at a million points
_CHUNK = 16_384
# Below it a point is no inlier, and its exponential would overflow when squared
LEAST_LOG_ODDS = -300.0

PerPoint: TypeAlias = Float[np.ndarray, "rows"]
Coordinates: TypeAlias = Float[np.ndarray, "dim rows"]
SiteSums: TypeAlias = tuple[float, Float[np.ndarray, "dim"], Float[np.ndarray, "dim dim"]]
"""(value, gradient, curvature) of the sum over all sites, in the kernels' coordinates."""

_Expected: TypeAlias = tuple[
    PerPoint, Coordinates, list[tuple[Coordinates, Coordinates]], Coordinates
]
"""Of each point: its mass M, M E[y - theta], and M E[(theta - mean)(y - theta)'].

The last as a sum of outer products of the pairs, less a diagonal.
"""


@dataclasses.dataclass(frozen=True)
class LocalGaussians:
    """q pi_i ~= M_i N(m_i, V_i), and what follows for sum_i weight_i log L_i.

    In the kernels' isotropic coordinates, without the prior.

    Attributes:
        mass: M_i ~= E_q[pi_i], the probability that point i is an inlier.
        shift: m_i - mean.
        gradient: E_q of the gradient of sum_i weight_i log L_i.
        curvature: minus E_q of its Hessian, symmetric.
    """

    mass: PerPoint
    shift: Float[np.ndarray, "rows dim"]
    gradient: Float[np.ndarray, "dim"]
    curvature: Float[np.ndarray, "dim dim"]


@dataclasses.dataclass(frozen=True)
class LineSums:
    """Sums over the points in one dimension, each weighted by weight_i / h_i: all a step needs.

    With d_i = y_i - mean and B, C, D of the paper: b = sum B, bd = sum B d, c = sum C, and e0, e1,
    e2 = sum D d^k / (h + v) for k = 0, 1, 2. The gradient of E_q[sum log L] in the mean is bd, its
    expected curvature c - e2.
    """

    b: float
    bd: float
    c: float
    e0: float
    e1: float
    e2: float


def line_sums(k: Kernels, mean: Scalar, v: Scalar, widening: float = 1.0) -> LineSums:
    """The paper's sums for q = N(mean, v) and kernels of variance h_i = widening * s_i.

    They cost two exponentials, a square root and a division a point. With r = h u^2 / 2, E = 1 /
    odds at theta* and T = 1 + E the paper's p is 1 / T, its vhat T^2 R for R = 1 / (T^2 + E (T + 2
    r) v / h), and M = sqrt(R) exp((R - 1) r v / h): no intermediate is divided twice.

    Source: Popov 2024 (arXiv 2404.10550), section 4.
    """
    total = np.zeros(6)
    for start in range(0, len(k.points), _CHUNK):
        part = slice(start, start + _CHUNK)
        total += np.asarray(_line_chunk(k, part, mean, v, widening))
    # Factors that all points share were left out of the chunks.
    if k.common_weight is not None:
        total *= k.common_weight
    if k.common_scale is not None:
        h = widening * k.common_scale
        total /= h
        total[3:] /= h + v
    return LineSums(*total.tolist())


def _line_chunk(
    k: Kernels, part: slice, mean: Scalar, v: Scalar, widening: float
) -> tuple[Scalar, ...]:
    """The six sums over some points, without the factors that all points share.

    In place, to stay in the cache: arrays are used again, and comments say what they hold by then.
    """
    h = widening * (k.scales[part] if k.common_scale is None else k.common_scale)
    ratio, wide = v / h, h + v
    d = k.points[part, 0] - mean
    r = d * d
    r *= 0.5 * h / wide**2
    odds = r - k.own_logits[part]  # of being background, E
    odds += 0.5 * np.log(widening)
    np.minimum(odds, -LEAST_LOG_ODDS, out=odds)
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


def local_gaussians(
    k: Kernels,
    mean: Float[np.ndarray, "dim"],
    cov: Float[np.ndarray, "dim dim"],
    widening: float = 1.0,
    *,
    cubic: bool = False,
) -> LocalGaussians:
    """The completion of the square, for q = N(mean, cov) and kernels of variance widening * s_i.

    With h = widening * s, S = cov, d = y - mean, u = (S + h)^-1 d, p = sigma(a - h u'u / 2): P =
    S^-1 + (1 - p) / h + p (1 - p) u u', m = mean + S u - p P^-1 u, V = P^-1, M = p |S P|^-1/2
    exp(-u'S u / 2 + p^2 u' P^-1 u / 2); gradient = sum M (y - m) / h, curvature = sym{S^-1 sum M [V
    - (m - mean)(y - m)'] / h}. Cost n D^2 + D^3.

    `cubic` puts the neglected third derivative of log L_i back to first order: expectations under
    N(m, V) are weighted by c(y) = 1 - Q (1 - 2 p) (u'y)^3 / 6 + Q (y'y)(u'y) / (2 h), Q = p (1 -
    p), y = theta - theta*. It costs no further exponential. Use it for v / vg up to about 2; `mass`
    is then M E[c].

    Source: Popov 2024 (arXiv 2404.10550), section 4, in one dimension. In D dimensions the square
    is completed in the same way; the cubic term is the next one of the same Taylor series, and its
    expectations follow from Stein's identity for the moments of y.
    """
    s, vectors = np.linalg.eigh(cov)
    n, dim = k.points.shape
    mass, shift = np.empty(n), np.empty((n, dim))
    gradient, half = np.zeros(dim), np.zeros((dim, dim))
    step = max(64, _CHUNK // (2 * dim))
    for start in range(0, n, step):
        part = slice(start, start + step)
        square = _completed(k, part, mean, s[:, None], vectors, widening)
        weight, moved, pairs, spread = (_cubic if cubic else _plain)(square)
        mass[part], shift[part] = weight, (vectors @ square.shift).T
        share = k.weights[part] / square.h
        gradient += moved @ share
        half += np.diag(spread @ share) - sum((a * share) @ b.T for a, b in pairs)
    half /= s[:, None]
    curvature = vectors @ (0.5 * (half + half.T)) @ vectors.T
    return LocalGaussians(mass, shift, vectors @ gradient, curvature)


@dataclasses.dataclass(frozen=True)
class _Square:
    """The completed square of some points in the eigenbasis of the covariance.

    Coordinates are rows of the arrays. V = diag(stiff) - bend soft soft'.

    Attributes:
        h: kernel variance of each point, or of all.
        p: responsibility at theta*.
        other: 1 - p.
        mass: M.
        u: (S + h)^-1 d.
        wide: S u = theta* - mean.
        soft: what V does to u, up to a factor.
        stiff: the diagonal part of V.
        bend: the factor of the outer product in V.
        length: u'V u.
        along: V u = soft / (1 + p (1 - p) u'soft).
        shift: m - mean.
    """

    h: float | PerPoint
    p: PerPoint
    other: PerPoint
    mass: PerPoint
    u: Coordinates
    wide: Coordinates
    soft: Coordinates
    stiff: Coordinates
    bend: PerPoint
    length: PerPoint
    along: Coordinates
    shift: Coordinates


def _completed(
    k: Kernels,
    part: slice,
    mean: Float[np.ndarray, "dim"],
    s: Float[np.ndarray, "dim 1"],
    vectors: Float[np.ndarray, "dim dim"],
    widening: float,
) -> _Square:
    h = widening * (k.scales[part] if k.common_scale is None else k.common_scale)
    u = vectors.T @ (k.points[part] - mean).T / (s + h)
    background = 0.5 * h * _dot(u, u) - k.own_logits[part] + 0.5 * k.dim * np.log(widening)
    odds = np.exp(np.minimum(background, -LEAST_LOG_ODDS))
    p = 1.0 / (1.0 + odds)
    other = odds * p
    loose = 1.0 + other * (s / h)  # s times the diagonal of P
    wide = s * u
    soft = wide / loose
    length = _dot(u, soft)
    grown = 1.0 + p * other * length
    size = np.prod(loose, axis=0) * grown  # may overflow to a mass of 0, which is right
    mass = p / np.sqrt(size) * np.exp(0.5 * (p * p / grown * length - _dot(u, wide)))
    along = soft / grown
    return _Square(
        h=h,
        p=p,
        other=other,
        mass=mass,
        u=u,
        wide=wide,
        soft=soft,
        stiff=s / loose,
        bend=p * other / grown,
        length=length / grown,
        along=along,
        shift=wide - p * along,
    )


def _plain(q: _Square) -> _Expected:
    """Expectations under M N(m, V)."""
    residual = q.h * q.u + q.p * q.along  # y_i - m_i
    pairs = [(q.mass * q.shift, residual), (q.mass * q.bend * q.soft, q.soft)]
    return q.mass, q.mass * residual, pairs, q.mass * q.stiff


def _cubic(q: _Square) -> _Expected:
    """The same under the weight c(y) = 1 - t(y), y ~ N(delta, V), delta = -p V u.

    Here t(y) = a (u'y)^3 - b (y'y)(u'y). With G = E[grad t], H = hess t(delta): E[t] = t(delta) +
    tr(V H) / 2, E[t y] = delta E[t] + V G, E[t y y'] = (delta delta' + V) E[t] + delta (V G)' + V G
    delta' + V H V.
    """
    a, b = q.p * q.other * (1.0 - 2.0 * q.p) / 6.0, q.p * q.other / (2.0 * q.h)
    along, delta, e = q.along, -q.p * q.along, q.h * q.u
    twice = q.stiff * along - q.bend * q.soft * _dot(q.soft, along)  # V V u
    # u'delta and tr V.
    reach, trace = -q.p * q.length, np.sum(q.stiff, axis=0) - q.bend * _dot(q.soft, q.soft)
    size = _dot(along, along)
    lost = a * reach**3 - b * q.p**2 * size * reach
    lost += 3.0 * a * reach * q.length - b * (reach * trace - 2.0 * q.p * size)
    kept = 1.0 - lost
    tilt = (3.0 * a * (reach**2 + q.length) - b * (q.p**2 * size + trace)) * along
    tilt += 2.0 * b * (q.p * reach - 1.0) * twice  # V G
    first = kept * delta - tilt
    # Of V^2 in V H V = 6 a reach w w' + 2 b p (V w w' + w (V w)') - 2 b reach V^2, w = V u
    turn = 2.0 * b * reach
    fast = q.stiff * q.soft
    m = q.mass
    pairs = [
        (m * kept * q.wide, e),
        (-m * q.wide, first),
        (m * first, e),
        (-m * kept * delta, delta),
        (m * delta, tilt),
        (m * tilt, delta),
        (m * 6.0 * a * reach * along, along),
        (m * 2.0 * b * q.p * twice, along),
        (m * 2.0 * b * q.p * along, twice),
        (m * kept * q.bend * q.soft, q.soft),
        (m * turn * q.bend * fast, q.soft),
        (m * turn * q.bend * q.soft, fast),
        (-m * turn * q.bend**2 * _dot(q.soft, q.soft) * q.soft, q.soft),
    ]
    return m * kept, m * (kept * e - first), pairs, m * (kept * q.stiff + turn * q.stiff**2)


def white_moments(
    target: Contaminated,
    k: Kernels,
    mean: Float[np.ndarray, "dim"],
    root: Float[np.ndarray, "dim dim"],
    sites: Callable[[Float[np.ndarray, "dim"], Float[np.ndarray, "dim dim"]], SiteSums],
    error: float,
) -> Moments:
    """Moments in whitened coordinates from those of the sites in the kernels' coordinates.

    Arguments:
        target: whose background counts towards the ELBO.
        k: its kernels.
        mean: of q.
        root: of q.
        sites: of (mean, covariance) in the kernels' coordinates; its value is E_q of sum weight
            softplus(log odds), NaN where there is none.
        error: what the value may be off, NaN where that is unknown.
    """
    centre, white = np.linalg.solve(k.root, mean), np.linalg.solve(k.root, root)
    value, slope, bend = sites(centre, white @ white.T)
    gradient = white.T @ (slope + k.prior_precision @ (k.prior_mean - centre))
    curvature = white.T @ (bend + k.prior_precision) @ white
    away = centre - k.prior_mean
    spread = away @ k.prior_precision @ away + np.sum(white * (k.prior_precision @ white))
    # The log 2 pi of q's entropy and that of the prior's normaliser cancel.
    entropy = float(np.linalg.slogdet(white)[1]) + 0.5 * k.dim
    elbo = (
        value
        + target.log_background()
        - 0.5 * spread
        + 0.5 * float(np.linalg.slogdet(k.prior_precision)[1])
        + entropy
    )
    return Moments(
        elbo=np.asarray(elbo),
        elbo_stderr=np.asarray(error),
        gradient=gradient,
        gradient_spread=gradient[None, :],
        curvature=0.5 * (curvature + curvature.T),
        curvature_stderr=np.asarray(0.0),
        evaluations=1,
        finite=bool(np.all(np.isfinite(gradient)) and np.all(np.isfinite(curvature))),
    )


class AbstractSiteMoments(AbstractMomentEstimator[Contaminated]):
    """Moments of contaminated data and no loss, which a gradient solver would need."""

    def check(
        self,
        target: Validated[AbstractTarget, "nobody: all are refused"],
        q: AbstractFamily,
        objective: AbstractObjective | None,
    ) -> None:
        self._refuse()

    def surrogate(
        self,
        objective: AbstractObjective,
        target: Contaminated,
        q: AbstractFamily,
        state: PyTree,
        key: Key | None,
    ) -> NoReturn:
        self._refuse()

    def _refuse(self) -> NoReturn:
        name = type(self).__name__
        raise PairingError(
            f"{name} gives moments and no loss, so a gradient solver cannot use it; use "
            f"tb.solvers.NaturalGradient(tb.estimators.{name}()), or Pathwise with this solver."
        )


def _dot(a: Coordinates, b: Coordinates) -> PerPoint:
    return np.einsum("dm,dm->m", a, b)


__all__ = [
    "LEAST_LOG_ODDS",
    "AbstractSiteMoments",
    "LineSums",
    "LocalGaussians",
    "line_sums",
    "local_gaussians",
    "white_moments",
]
