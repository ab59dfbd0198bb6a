"""The completed square behind the clutter paper's analytic gradient.

Q times a site's tilt as a Gaussian, point by point.
"""

import dataclasses
from typing import Any, NoReturn

import numpy as np

from ...results import PairingError
from ...targets.sites import Kernels
from ..base import Moments

# points whose intermediates stay in the second-level cache: a third of the time at a million points
_CHUNK = 16_384
# below it a point is no inlier, and its exponential would overflow when squared
_LEAST_LOG_ODDS = -300.0


@dataclasses.dataclass(frozen=True)
class LocalGaussians:
    """q pi_i ~= M_i N(m_i, V_i), and what follows for sum_i weight_i log L_i, in the kernels'
    isotropic coordinates.

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
    """Sums over the points in one dimension, each weighted by weight_i / h_i, with d_i = y_i -
    mean: all that a step needs.

    With B, C, D of the paper: b = sum B, bd = sum B d, c = sum C, and e0, e1, e2 = sum D d^k / (h +
    v) for k = 0, 1, 2. The gradient of E_q[sum log L] in the mean is bd, its expected curvature c -
    e2.
    """

    b: float
    bd: float
    c: float
    e0: float
    e1: float
    e2: float


def line_sums(k: Kernels, mean: float, v: float, widening: float = 1.0) -> LineSums:
    """The paper's sums for q = N(mean, v) and kernels of variance h_i = widening * s_i: 2 exp, a
    sqrt, a division a point.

    With r = h u^2 / 2, E = 1 / odds at theta* and T = 1 + E the paper's p is 1 / T, its vhat T^2 R
    for R = 1 / (T^2 + E (T + 2 r) v / h), and M = sqrt(R) exp((R - 1) r v / h): no intermediate is
    divided twice.

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


def _line_chunk(
    k: Kernels, part: slice, mean: float, v: float, widening: float
) -> tuple[float, ...]:
    """The six sums over some points, without the factors that all points share.

    In place, to stay in the cache.
    """
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


def local_gaussians(
    k: Kernels, mean: np.ndarray, cov: np.ndarray, widening: float = 1.0, *, cubic: bool = False
) -> LocalGaussians:
    """The completion of the square, for q = N(mean `[D]`, cov `[D, D]`) and kernels of variance h_i
    = widening * s_i.

    With S = cov, d = y - mean, u = (S + h)^-1 d, p = sigma(a - h u'u / 2): P = S^-1 + (1 - p) / h +
    p (1 - p) u u', m = mean + S u - p P^-1 u, V = P^-1, M = p |S P|^-1/2 exp(-u'S u / 2 + p^2 u'
    P^-1 u / 2); gradient = sum M (y - m) / h, curvature = sym{S^-1 sum M [V - (m - mean)(y - m)'] /
    h}. Cost n D^2 + D^3.

    `cubic` puts the neglected third derivative of log L_i back to first order: expectations under
    N(m, V) are weighted by c(y) = 1 - Q (1 - 2 p) (u'y)^3 / 6 + Q (y'y)(u'y) / (2 h), Q = p (1 -
    p), y = theta - theta*. It costs no further exponential. Use it for v / vg up to about 2; `mass`
    is then M E[c].

    Source: Popov 2024, section 4 (one dimension); clutter spec, sections 2.3 (D dimensions) and 2.5
    (cubic, one dimension; here in D dimensions by Stein's identity for the moments of y).
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

    Coordinates are rows, `[D, m]`.

    V = diag(stiff) - bend soft soft', and along = V u = soft / (1 + p (1 - p) u'soft).
    """

    h: Any
    p: np.ndarray
    other: np.ndarray  # 1 - p
    mass: np.ndarray
    u: np.ndarray
    wide: np.ndarray  # S u = theta* - mean
    soft: np.ndarray
    stiff: np.ndarray
    bend: np.ndarray
    length: np.ndarray  # u'V u
    along: np.ndarray
    shift: np.ndarray  # m - mean


def _completed(
    k: Kernels, part: slice, mean: np.ndarray, s: np.ndarray, vectors: np.ndarray, widening: float
) -> _Square:
    h = widening * (k.scales[part] if k.common_scale is None else k.common_scale)
    u = vectors.T @ (k.points[part] - mean).T / (s + h)
    background = 0.5 * h * _dot(u, u) - k.own_logits[part] + 0.5 * k.dim * np.log(widening)
    odds = np.exp(np.minimum(background, -_LEAST_LOG_ODDS))
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
        h, p, other, mass, u, wide, soft, s / loose, p * other / grown, length / grown, along, wide - p * along
    )  # fmt: skip


def _plain(
    q: _Square,
) -> tuple[np.ndarray, np.ndarray, list[tuple[np.ndarray, np.ndarray]], np.ndarray]:
    """Mass, M E[y - theta], and M E[(theta - mean)(y - theta)'] as outer products minus a diagonal."""
    residual = q.h * q.u + q.p * q.along  # y_i - m_i
    pairs = [(q.mass * q.shift, residual), (q.mass * q.bend * q.soft, q.soft)]
    return q.mass, q.mass * residual, pairs, q.mass * q.stiff


def _cubic(
    q: _Square,
) -> tuple[np.ndarray, np.ndarray, list[tuple[np.ndarray, np.ndarray]], np.ndarray]:
    """The same under the weight c(y) = 1 - t(y), t(y) = a (u'y)^3 - b (y'y)(u'y), y ~ N(delta, V),
    delta = -p V u.

    With G = E[grad t], H = hess t(delta): E[t] = t(delta) + tr(V H) / 2, E[t y] = delta E[t] + V G,
    E[t y y'] = (delta delta' + V) E[t] + delta (V G)' + V G delta' + V H V.
    """
    a, b = q.p * q.other * (1.0 - 2.0 * q.p) / 6.0, q.p * q.other / (2.0 * q.h)
    along, delta, e = q.along, -q.p * q.along, q.h * q.u
    twice = q.stiff * along - q.bend * q.soft * _dot(q.soft, along)  # V V u
    # u'delta, tr V
    reach, trace = -q.p * q.length, np.sum(q.stiff, axis=0) - q.bend * _dot(q.soft, q.soft)
    size = _dot(along, along)
    lost = a * reach**3 - b * q.p**2 * size * reach
    lost += 3.0 * a * reach * q.length - b * (reach * trace - 2.0 * q.p * size)
    kept = 1.0 - lost
    tilt = (3.0 * a * (reach**2 + q.length) - b * (q.p**2 * size + trace)) * along
    tilt += 2.0 * b * (q.p * reach - 1.0) * twice  # V G
    first = kept * delta - tilt
    # of V^2 in V H V = 6 a reach w w' + 2 b p (V w w' + w (V w)') - 2 b reach V^2, w = V u
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
    target: Any, k: Kernels, mean: np.ndarray, root: np.ndarray, sites: Any, error: float
) -> Moments:
    """Moments in whitened coordinates from `sites(mean, cov) -> (value, gradient, curvature)` of
    the kernels' coordinates.

    `value` is E_q of sum weight softplus(log odds), NaN where there is none; `error` bounds what it
    is off (NaN: unknown).
    """
    centre, white = np.linalg.solve(k.root, mean), np.linalg.solve(k.root, root)
    value, slope, bend = sites(centre, white @ white.T)
    gradient = white.T @ (slope + k.prior_precision @ (k.prior_mean - centre))
    curvature = white.T @ (bend + k.prior_precision) @ white
    away = centre - k.prior_mean
    spread = away @ k.prior_precision @ away + np.sum(white * (k.prior_precision @ white))
    # against the prior's normaliser: log 2 pi cancels
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


def refuse_surrogate(estimator: Any) -> NoReturn:
    """What the estimators of contaminated data say when a gradient solver wants a loss from them."""
    name = type(estimator).__name__
    raise PairingError(
        f"{name} gives moments and no loss, so a gradient solver cannot use it; use "
        f"tb.solvers.NaturalGradient(tb.estimators.{name}()), or Pathwise with this solver."
    )


def _dot(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.einsum("dm,dm->m", a, b)


__all__ = [
    "LineSums",
    "LocalGaussians",
    "line_sums",
    "local_gaussians",
    "refuse_surrogate",
    "white_moments",
]
