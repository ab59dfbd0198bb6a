"""Expectations over a fixed, antithetic, moment-matched design.

Deterministic, so a search over it can stop by itself.
"""

from typing import Any, ClassVar

import equinox as eqx
import jax.numpy as jnp
import numpy as np

from .._numerics import host_rng
from ..objectives.base import AbstractObjective
from ..objectives.classic import ELBO, IWELBO
from ..targets.batched import batched
from .base import AbstractEstimator, Moments
from .draws import evaluate


class FixedDesign(AbstractEstimator):
    """m antithetic pairs of standard normals with sample covariance exactly I, drawn once: points
    mean +- root z.

    The estimate is exact wherever the log density is quadratic, at any condition number, and its
    error elsewhere falls as 1 / sqrt(m); the solver doubles m until that error is below the
    tolerance. Second derivatives come from a regression of whitened scores on the design (Stein's
    identity E_q[hess log p] = E_q[grad log p (z - mean)'] S^-1), which needs m >= dim: not for dim
    above some hundreds (use a low-rank family there).

    Source: Giordano, Ingram & Broderick 2023 (fixed draws); Opper & Archambeau 2009, eqs. 5-8
    (Gaussian moments).

    Attributes:
        pairs: m; None chooses max(dim, 32).
    """

    pairs: int | None = None
    unbiased_for: ClassVar[tuple[type[AbstractObjective], ...]] = (ELBO, IWELBO)
    needs_reparameterised: ClassVar[bool] = True

    def __check_init__(self):
        if self.pairs is not None and self.pairs < 1:
            raise ValueError(f"FixedDesign: `pairs` must be at least 1, got {self.pairs}.")

    def prepare(self, target: Any, q: Any, key: Any) -> Any:
        rng, pairs = host_rng(key, "design"), self._pairs(q.dim)
        if q.noise_dim is None or q.noise_dim == q.dim:
            return moment_matched(rng, pairs, q.dim)
        return matched_noise(rng, pairs, q.dim, q.noise_dim - q.dim)

    def evaluations_per_step(self, target: Any) -> float:
        return 2.0 * self._pairs(target.dim)

    def _pairs(self, dim: int) -> int:
        return self.pairs or max(dim, 32)

    def surrogate(
        self, objective: AbstractObjective, target: Any, q: Any, state: Any, key: Any
    ) -> tuple[Any, Any]:
        noise = jnp.concatenate([jnp.asarray(state), -jnp.asarray(state)])
        z = eqx.filter_vmap(q._from_noise)(noise)
        return objective.loss(evaluate(objective, target, q, z)), state

    def moments(
        self, target: Any, mean: np.ndarray, root: np.ndarray, design: np.ndarray
    ) -> Moments:
        """Whitened moments of the target under N(mean, root root') over the design `[m, d]`."""
        moves = design @ root.T
        values, scores = batched(target)(np.concatenate([mean + moves, mean - moves]))
        log_det = float(np.linalg.slogdet(root)[1])
        return whitened_moments(design, values, scores @ root, log_det, xp=np)


def moment_matched(rng: np.random.Generator, pairs: int, dim: int) -> np.ndarray:
    """Standard normal rows `[pairs, dim]`, rotated and scaled so that their second moment is
    exactly I (pairs >= dim).
    """
    z = rng.standard_normal((pairs, dim))
    if pairs < dim:
        return z
    eigenvalues, vectors = np.linalg.eigh(z.T @ z / pairs)
    return z @ ((vectors / np.sqrt(eigenvalues)) @ vectors.T)


def matched_noise(rng: np.random.Generator, pairs: int, dim: int, rank: int) -> np.ndarray:
    """Normals `[pairs, dim + rank]`: unit second moments, the last `rank` columns orthogonal to
    each other and to the rest.

    Without this the factor learns to cancel the diagonal part's noise on these draws, and q comes
    out too wide. With enough pairs all columns are orthogonal: then the ELBO of every quadratic log
    density is exact.
    """
    if pairs >= dim + rank:
        return np.linalg.qr(rng.standard_normal((pairs, dim + rank)))[0] * np.sqrt(pairs)
    own, shared = rng.standard_normal((pairs, dim)), rng.standard_normal((pairs, rank))
    shared = np.linalg.qr(shared)[0] * np.sqrt(pairs) if rank else shared
    own -= shared @ (shared.T @ own) / pairs
    own /= np.sqrt(np.mean(own**2, axis=0))
    return np.concatenate([own, shared], axis=1)


def whitened_moments(design: Any, values: Any, scores: Any, log_det: Any, xp: Any = np) -> Moments:
    """Moments from values `[2m]` and whitened scores `[2m, d]` at mean + root z (first half) and
    mean - root z.

    Even part of the scores: the gradient of the ELBO in the whitened mean. Odd part, regressed on
    the design: the whitened expected Hessian. `xp` is numpy on the host and jax.numpy in compiled
    code.
    """
    m, dim = design.shape
    odd, even = 0.5 * (scores[:m] - scores[m:]), 0.5 * (scores[:m] + scores[m:])
    half = design.T @ odd
    curvature = -0.5 * (half + half.T) / m
    residual = odd + design @ curvature  # of the regression of scores on the design
    pair_values = 0.5 * (values[:m] + values[m:]) + 0.5 * xp.sum(design**2, axis=1)
    entropy = log_det + 0.5 * dim * (1.0 + np.log(2 * np.pi))
    finite = xp.all(xp.isfinite(values)) & xp.all(xp.isfinite(scores))
    elbo = xp.where(finite, xp.mean(values) + entropy, -np.inf)
    return Moments(
        elbo=elbo,
        elbo_stderr=xp.std(pair_values) / np.sqrt(m),
        gradient=xp.mean(even, axis=0),
        gradient_spread=even,
        curvature=curvature,
        curvature_stderr=xp.sqrt(xp.sum((design * residual) ** 2) / (m * m * max(dim, 1))),
        evaluations=2 * m,
        finite=finite,
    )


__all__ = ["FixedDesign", "matched_noise", "moment_matched", "whitened_moments"]
