"""A mixture for contaminated posteriors that no Gaussian fits.

A component at each mode, and one for "all background".
"""

from typing import Any

import numpy as np
import scipy.special as sp

from ..families.gaussian import Gaussian
from ..families.mixture import Mixture
from ..search.modes import Mode
from ..targets.sites import Kernels

_DRAWS = 4000
_ROUNDS = 4
_MOST_MODES = 8
_LEAST_WEIGHT = 1e-4


def mixture_at_modes(
    target: Any, kernels: Kernels, found: list[Mode], rng: np.random.Generator
) -> Mixture:
    """Gaussians of the modes' curvature weighted by their evidence, refined by a few rounds of
    importance-weighted EM.

    Each round draws 4000 points of the mixture, weights them by p / q, and refits weights, means
    and covariances to them: population Monte Carlo, which lowers KL(p || q). Components of less
    than 1e-4 are dropped. Host arithmetic only.

    Source: Cappé et al. 2008, section 4 (the updates).
    """
    parts = [
        (kernels.root @ mode.mean, kernels.root @ mode.cov @ kernels.root.T)
        for mode in found[:_MOST_MODES]
    ]
    logits = [mode.log_evidence for mode in found[:_MOST_MODES]]
    if np.all(np.isfinite(kernels.own_logits)):
        parts.append(target.prior())
        logits.append(0.0)
    mixture = _mixture(parts, sp.softmax(logits))
    for _ in range(_ROUNDS):
        z, log_q = mixture.draw(_DRAWS, int(rng.integers(2**31)))
        weights = sp.softmax(target.log_density_on_host(z) - log_q)
        log_parts = (
            np.stack([q.log_prob_on_host(z) for q in mixture.components])
            + np.log(mixture.weights)[:, None]
        )
        shares = weights * np.exp(log_parts - log_q)
        total = shares.sum(axis=1)
        if not np.all(np.isfinite(shares)) or 1.0 / np.sum(weights**2) < 0.05 * _DRAWS:
            break
        mixture = _mixture(
            [_moments(z, share) for share in shares[total > _LEAST_WEIGHT]],
            total[total > _LEAST_WEIGHT],
        )
    return mixture


def _moments(z: np.ndarray, share: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    share = share / share.sum()
    mean = share @ z
    delta = z - mean
    return mean, (delta * share[:, None]).T @ delta


def _mixture(parts: list[tuple[np.ndarray, np.ndarray]], weights: np.ndarray) -> Mixture:
    """From means, covariances (kept positive definite) and weights.

    Parts of no weight at all are left out.
    """
    members, logits = [], []
    for (mean, cov), weight in zip(parts, weights, strict=True):
        if weight > 0:
            floor = 1e-10 * np.trace(cov) / len(mean) + 1e-300
            members.append(
                Gaussian.from_root(mean, np.linalg.cholesky(cov + floor * np.eye(len(mean))))
            )
            logits.append(np.log(weight))
    return Mixture(members, np.array(logits))


__all__ = ["mixture_at_modes"]
