"""Softplus as a sum of exponentials: a closed-form ELBO for any width of q, in any dimension."""

import functools
from collections.abc import Callable
from typing import TypeAlias

import equinox as eqx
import numpy as np
from jaxtyping import Float

from ..._types import Key, Scalar, Validated
from ...families.base import AbstractFamily
from ...results import PairingError
from ...targets.base import require
from ...targets.sites import Contaminated, Kernels
from ..base import Moments
from .local_gaussians import AbstractSiteMoments, SiteSums, white_moments

_FASTEST = 6.0  # the largest rate; with 8 terms any from 3 to 8 fits about as well
# Log odds a of the table. Below it softplus is an exponential to 3e-6 of itself; above it no sum of
# a few exponentials comes near.
_TABLE = np.arange(-12.0, 20.01, 0.1)
_GRID = 300  # distances at which the fit is made
_CHUNK = 4_096  # numbers a row of intermediates, which stay in the second-level cache

Coefficients: TypeAlias = Callable[[Float[np.ndarray, "n"]], Float[np.ndarray, "n terms"]]
Terms: TypeAlias = Float[np.ndarray, "rows terms"]
Design: TypeAlias = tuple[Kernels, Terms, Terms, float]
"""The kernels, coefficients A_k, rates b_k, and the bound on the error of the ELBO in nats."""


class SumOfExponentials(AbstractSiteMoments):
    """E_q log L_i in closed form, through softplus(a - r/2) ~= sum_k A_k(a) exp(-b_k(a) r / 2).

    Here r = |y_i - theta|^2 / s_i. Each term has a Gaussian expectation in any dimension, with a
    full covariance: E_q exp(-b r / 2) = |I + b S / s|^-1/2 exp(-d' (s / b + S)^-1 d / 2), d = y_i -
    mean. So the ELBO is approximated *globally*, whatever v / vg is; gradient and curvature are
    exactly those of the approximation, and NaturalGradient climbs it monotonically. `elbo_stderr`
    holds a bound on its error: the sum over points of the largest error of the fit. The
    coefficients are fitted once per process (least squares; b_k geometric from about .5 / max(1, .6
    a) to 6). With 8 terms the error is 8e-5 per point at a = 1, 6e-3 at a = 3, .07 at a = 6: not
    for a above some 6, that is for background that is rare or very far away, nor for many
    dimensions. Then use GaussHermite, ProjectedLogit or EP.

    Attributes:
        terms: number of exponentials, from 2 to 16.
    """

    terms: int = eqx.field(default=8, static=True)

    def __check_init__(self):
        if not 2 <= self.terms <= 16:
            raise ValueError(
                f"SumOfExponentials: `terms` must lie between 2 and 16, got {self.terms}."
            )

    def prepare(
        self, target: Validated[Contaminated, "require"], q: AbstractFamily | None, key: Key | None
    ) -> Design:
        """The kernels with the coefficients and rates of each point.

        Raises:
            PairingError: the target is not contaminated data, or a point is all but certain to be
                an inlier.
        """
        k = require(self, target, Contaminated).kernels()
        if np.max(k.own_logits) > _TABLE[-1]:
            raise PairingError(
                f"SumOfExponentials: a point at distance 0 has log odds {np.max(k.own_logits):.3g}"
                f" of being an inlier; above {_TABLE[-1]:.0f} no sum of exponentials is close. Use"
                " GaussHermite (one or two dimensions), ProjectedLogit, or EP."
            )
        coefficients, rates, error = exponentials(k.own_logits, self.terms)
        return k, coefficients, rates, float(k.weights @ error)

    def moments(
        self,
        target: Contaminated,
        mean: Float[np.ndarray, "dim"],
        root: Float[np.ndarray, "dim dim"],
        design: Design,
    ) -> Moments:
        """Whitened moments of the approximated log p under N(mean, root root'), prior included."""
        k, coefficients, rates, bound = design
        return white_moments(
            target, k, mean, root, lambda m, cov: _sites(k, m, cov, coefficients, rates), bound
        )


def _sites(
    k: Kernels,
    mean: Float[np.ndarray, "dim"],
    cov: Float[np.ndarray, "dim dim"],
    coefficients: Terms,
    rates: Terms,
) -> SiteSums:
    """E_q of sum weight softplus, its gradient in the mean, and -2 times that in the covariance."""
    # In the eigenbasis of the covariance every term is a product over coordinates.
    s, vectors = np.linalg.eigh(cov)
    value, gradient, half = 0.0, np.zeros(k.dim), np.zeros((k.dim, k.dim))
    step = max(16, _CHUNK // k.dim)
    for start in range(0, len(k.points), step):
        part = slice(start, start + step)
        d = (k.points[part] - mean) @ vectors
        width = (k.scales[part, None] / rates[part])[:, :, None]  # s / b: [m, terms, 1]
        inverse = 1.0 / (width + s)
        pull = inverse * d[:, None, :]
        log_size = 0.5 * np.sum(np.log(width * inverse), axis=2) - 0.5 * np.einsum(
            "mkd,md->mk", pull, d
        )
        term = k.weights[part, None] * coefficients[part] * np.exp(log_size)
        value += float(np.sum(term))
        gradient += np.einsum("mk,mkd->d", term, pull)
        flat = pull.reshape(-1, k.dim)
        half += (
            np.diag(np.einsum("mk,mkd->d", term, inverse)) - (flat * term.reshape(-1, 1)).T @ flat
        )
    return value, vectors @ gradient, vectors @ half @ vectors.T


def exponentials(
    a: Float[np.ndarray, "rows"], terms: int
) -> tuple[Terms, Terms, Float[np.ndarray, "rows"]]:
    """A_k, b_k and the largest error over r, for log odds a of up to 20.

    Below a = -12 softplus is the exponential of its argument: the fit at -12 is scaled by exp(a +
    12).
    """
    spline, errors = _table(terms)
    inside = np.maximum(a, _TABLE[0])
    scale = np.exp(a - inside)
    return (
        spline(inside) * scale[:, None],
        _rates(inside, terms),
        np.interp(inside, _TABLE, errors) * scale,
    )


def _rates(a: Float[np.ndarray, "*rows"] | Scalar, terms: int) -> Terms:
    # The maximum of 1 and .6 a, without a kink: the spline over a needs smooth coefficients.
    stretch = 1.0 + np.logaddexp(0.0, 4.0 * (0.6 * np.atleast_1d(a) - 1.0)) / 4.0
    slowest = 0.5 / stretch
    return slowest[:, None] * (_FASTEST / slowest[:, None]) ** (np.arange(terms) / (terms - 1))


@functools.lru_cache(maxsize=8)
def _table(terms: int) -> tuple[Coefficients, Float[np.ndarray, "knots"]]:
    """A spline over a of the coefficients, and the largest error around each knot.

    Measured at the knots and half-way between them.
    """
    import scipy.interpolate as si  # a tenth of a second of import that few fits need

    rows = [_fitted(a, terms) for a in _TABLE]
    spline = si.CubicSpline(_TABLE, np.stack(rows))
    middle = _TABLE[:-1] + 0.5 * np.diff(_TABLE)
    at, between = _errors(_TABLE, spline(_TABLE), terms), _errors(middle, spline(middle), terms)
    worst = at.copy()
    worst[:-1], worst[1:] = np.maximum(worst[:-1], between), np.maximum(worst[1:], between)
    return spline, worst


def _distances(a: Scalar, count: int) -> Float[np.ndarray, "distances"]:
    """r / 2 from 0 to where softplus(a - r / 2) is 1e-16, even in its square root."""
    return np.linspace(0.0, np.sqrt(max(a, 0.0) + 37.0), count) ** 2


def _fitted(a: Scalar, terms: int) -> Float[np.ndarray, "terms"]:
    half = _distances(a, _GRID)
    basis = np.exp(-half[:, None] * _rates(a, terms))
    return np.linalg.lstsq(basis, np.logaddexp(0.0, a - half), rcond=1e-13)[0]


def _errors(
    a: Float[np.ndarray, "knots"], coefficients: Float[np.ndarray, "knots terms"], terms: int
) -> Float[np.ndarray, "knots"]:
    out = np.empty(len(a))
    for i, value in enumerate(a):
        half = _distances(value, 3 * _GRID)
        basis = np.exp(-half[:, None] * _rates(value, terms))
        out[i] = np.max(np.abs(basis @ coefficients[i] - np.logaddexp(0.0, value - half)))
    return out


__all__ = ["SumOfExponentials", "exponentials"]
