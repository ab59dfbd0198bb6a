"""A mixture for contaminated posteriors that no Gaussian fits: a component at each mode.

And one for "all background".
"""

import numpy as np
import scipy.special as sp
from jaxtyping import Float

from ..families.gaussian import Gaussian
from ..families.mixture import Mixture
from ..search.modes import Mode
from ..targets.sites import Contaminated, Kernels

_DRAWS = 4000  # of a round
_ROUNDS = 4  # each lowers KL(p || q), the first ones most
_MOST_MODES = 8  # components; more, and some get too few draws to refit a covariance from
_LEAST_WEIGHT = 1e-4  # of a component: less is none of 4,000 draws
_LEAST_EFFECTIVE = 0.05  # of the draws: with fewer a refit would follow single draws


def mixture_at_modes(
    target: Contaminated, kernels: Kernels, found: list[Mode], rng: np.random.Generator
) -> Mixture:
    """Gaussians of the modes' curvature, refined by rounds of importance-weighted EM.

    They are weighted by their evidence at first. Each round draws 4000 points of the mixture,
    weights them by p / q, and refits weights, means and covariances to them: population Monte
    Carlo, which lowers KL(p || q). Components of less than 1e-4 are dropped. Host arithmetic only.

    Arguments:
        target: the contaminated data.
        kernels: its kernels.
        found: the modes, best first.
        rng: of the draws.

    Source: Cappé et al. 2008, section 4 (the updates).
    """
    parts = [
        (kernels.root @ mode.mean, kernels.root @ mode.cov @ kernels.root.T)
        for mode in found[:_MOST_MODES]
    ]
    logits = [mode.log_evidence for mode in found[:_MOST_MODES]]
    # Where no point is an inlier the posterior is the prior: log evidence 0, as modes count it.
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
        if not np.all(np.isfinite(shares)) or 1.0 / np.sum(weights**2) < _LEAST_EFFECTIVE * _DRAWS:
            break
        mixture = _mixture(
            [_moments(z, share) for share in shares[total > _LEAST_WEIGHT]],
            total[total > _LEAST_WEIGHT],
        )
    return mixture


def _moments(
    z: Float[np.ndarray, "n dim"], share: Float[np.ndarray, "n"]
) -> tuple[Float[np.ndarray, "dim"], Float[np.ndarray, "dim dim"]]:
    """Mean and covariance of the points, each with its share."""
    share = share / share.sum()
    mean = share @ z
    delta = z - mean
    return mean, (delta * share[:, None]).T @ delta


def _mixture(
    parts: list[tuple[Float[np.ndarray, "dim"], Float[np.ndarray, "dim dim"]]],
    weights: Float[np.ndarray, "parts"],
) -> Mixture:
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
