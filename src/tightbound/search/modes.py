"""The modes of a contaminated posterior, by the mean-shift fixed point from many points at once."""

import dataclasses

import numpy as np
import scipy.special as sp
from jaxtyping import Float

from ..families.gaussian import Gaussian
from ..targets.sites import Kernels

_MOST_STARTS = (
    32  # points from which modes are looked for, evenly spread along the first coordinate
)
# On which modes are looked for; of more points an even selection, each counted more often
_MOST_POINTS = 5_000
_STEPS = 100  # of the fixed point, which converges linearly
_NEWTON_STEPS = 4  # after it, which double the digits
_SAME = 0.5  # kernel sds within which two ends are one mode
_PRECISION = 1e-3  # kernel sds that a step may still make
_DEPTH = 12.0  # nats of evidence below the best mode at which others are left out


@dataclasses.dataclass(frozen=True)
class Mode:
    """A local maximum of the posterior, with the Gaussian of its curvature.

    Attributes:
        mean: in the kernels' isotropic coordinates.
        cov: of the Gaussian there.
        log_evidence: Laplace's, nats, relative to that of "every point is background" (where that
            can be).
    """

    mean: Float[np.ndarray, "dim"]
    cov: Float[np.ndarray, "dim dim"]
    log_evidence: float


def modes(kernels: Kernels) -> list[Mode]:
    """Distinct modes, largest evidence first: from up to 32 of the points and the prior mean.

        theta <- (sum r_i y_i / s_i + P0 m0) / (sum r_i / s_i + P0),
        r_i = sigma(a_i - |y_i - theta|^2 / (2 s_i))

    EM for the mode, from every start together. A mode that no start reaches stays unseen.

    Source: Popov 2024, section 5 (Laplace's fixed point); Comaniciu & Meer 2002, eq. 20.
    """
    k = _selected(kernels)
    n, dim = k.points.shape
    order = np.argsort(k.points[:, 0], kind="stable")
    chosen = order[np.unique(np.linspace(0, n - 1, min(n, _MOST_STARTS)).astype(int))]
    t = np.concatenate([k.points[chosen], k.prior_mean[None]])
    pull = k.prior_precision @ k.prior_mean
    for _ in range(_STEPS):
        share = k.weights * _responsibilities(k, t) / k.scales
        precision = share.sum(axis=1)[:, None, None] * np.eye(dim) + k.prior_precision
        new = np.linalg.solve(precision, (share @ k.points + pull)[:, :, None])[:, :, 0]
        moved = np.max(np.abs(new - t))
        t = new
        if moved < _PRECISION * np.sqrt(k.median_scale):
            break
    found = sorted(
        (_mode_at(k, end) for end in _distinct(t, k)), key=lambda mode: -mode.log_evidence
    )
    return [mode for mode in found if mode.log_evidence > found[0].log_evidence - _DEPTH]


def starts_at_modes(kernels: Kernels, found: list[Mode]) -> list[Gaussian]:
    """Gaussians in the target's coordinates: one at each mode, and one over all of them.

    The last has the moments of the mixture of modes, and of the prior for "all background".
    """
    can_be_background = bool(np.all(np.isfinite(kernels.own_logits)))
    means = [mode.mean for mode in found] + [kernels.prior_mean] * can_be_background
    prior = np.linalg.inv(kernels.prior_precision)
    covs = [mode.cov for mode in found] + [prior] * can_be_background
    weights = sp.softmax([mode.log_evidence for mode in found] + [0.0] * can_be_background)
    mean = np.einsum("k,kd->d", weights, np.stack(means))
    delta = np.stack(means) - mean
    cov = np.einsum("k,kde->de", weights, np.stack(covs) + delta[:, :, None] * delta[:, None, :])
    return [_gaussian(kernels, m, c) for m, c in [*((g.mean, g.cov) for g in found), (mean, cov)]]


def _gaussian(
    k: Kernels, mean: Float[np.ndarray, "dim"], cov: Float[np.ndarray, "dim dim"]
) -> Gaussian:
    return Gaussian.from_root(k.root @ mean, k.root @ np.linalg.cholesky(cov))


def _selected(k: Kernels) -> Kernels:
    """All points, or an even selection of many with the weights of all."""
    n = len(k.points)
    if n <= _MOST_POINTS:
        return k
    index = np.linspace(0, n - 1, _MOST_POINTS).astype(int)
    weights = k.weights[index] * (k.weights.sum() / k.weights[index].sum())
    return dataclasses.replace(
        k,
        points=k.points[index],
        scales=k.scales[index],
        log_odds=k.log_odds[index],
        weights=weights,
    )


def _odds(k: Kernels, t: Float[np.ndarray, "starts dim"]) -> Float[np.ndarray, "starts rows"]:
    """Log odds that each point is an inlier if theta is t."""
    # One coordinate after the other: `[starts, rows, dim]` at once would not stay in the cache.
    squares = np.zeros((len(t), len(k.points)))
    for j in range(k.dim):
        squares += (t[:, j, None] - k.points[:, j]) ** 2
    return k.own_logits - 0.5 * squares / k.scales


def _responsibilities(
    k: Kernels, t: Float[np.ndarray, "starts dim"]
) -> Float[np.ndarray, "starts rows"]:
    return sp.expit(_odds(k, t))


def _distinct(t: Float[np.ndarray, "starts dim"], k: Kernels) -> list[Float[np.ndarray, "dim"]]:
    """The ends of which none is near another."""
    ends: list[np.ndarray] = []
    for end in t:
        if all(np.linalg.norm(end - other) > _SAME * np.sqrt(k.median_scale) for other in ends):
            ends.append(end)
    return ends


def _mode_at(k: Kernels, t: Float[np.ndarray, "dim"]) -> Mode:
    """Laplace's approximation at the mode that a few short Newton steps from t end on."""
    for _ in range(_NEWTON_STEPS):
        score, vectors, sizes = _curvature(k, t)
        step = (vectors / sizes) @ (vectors.T @ score)
        # No step to another mode
        t = t + step * min(1.0, _SAME * np.sqrt(k.median_scale) / (np.linalg.norm(step) + 1e-300))
    _, vectors, sizes = _curvature(k, t)
    odds = _odds(k, t[None])[0]
    certain = np.isinf(k.own_logits)  # no background there: the constant is the kernel's own
    value = np.where(
        certain, -0.5 * np.sum((k.points - t) ** 2, axis=1) / k.scales, np.logaddexp(0.0, odds)
    )
    away = t - k.prior_mean
    log_p = (
        k.weights @ value
        - 0.5 * away @ k.prior_precision @ away
        + 0.5 * np.linalg.slogdet(k.prior_precision)[1]
    )
    return Mode(t, (vectors / sizes) @ vectors.T, float(log_p - 0.5 * np.sum(np.log(sizes))))


def _curvature(
    k: Kernels, t: Float[np.ndarray, "dim"]
) -> tuple[Float[np.ndarray, "dim"], Float[np.ndarray, "dim dim"], Float[np.ndarray, "dim"]]:
    """The score at t, and the negative Hessian's eigenvectors and eigenvalues.

    Eigenvalues are kept above the prior's smallest: far from a mode they need not be positive.
    """
    r = sp.expit(_odds(k, t[None])[0])
    e = (k.points - t) / k.scales[:, None]
    score = (k.weights * r) @ e - k.prior_precision @ (t - k.prior_mean)
    bend = (
        np.sum(k.weights * r / k.scales) * np.eye(k.dim)
        - (e * (k.weights * r * (1 - r))[:, None]).T @ e
    )
    sizes, vectors = np.linalg.eigh(bend + k.prior_precision)
    return score, vectors, np.maximum(sizes, np.linalg.eigvalsh(k.prior_precision)[0])


__all__ = ["Mode", "modes", "starts_at_modes"]
