"""Expectations over a fixed, antithetic, moment-matched design.

It is deterministic, so that a search over it can stop by itself.
"""

from types import ModuleType
from typing import ClassVar

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from .._numerics import host_rng
from .._types import Array, Key, Scalar
from ..families.base import AbstractFamily
from ..objectives.base import AbstractObjective
from ..objectives.classic import ELBO, IWELBO
from ..targets.base import Density
from ..targets.batched import batched
from .base import AbstractMomentEstimator, Moments
from .draws import evaluate

# A design has at least as many pairs as this in few dimensions, and as many as there are dimensions
# in many: then the regression of scores on it has a solution.
_LEAST_PAIRS = 32
_MOST_PAIRS = 16  # times max(dim, 32): the largest design
_LEAST_GROWTH, _MOST_GROWTH = 2.0, 4.0  # of a design that is too small


class FixedDesign(AbstractMomentEstimator[Density]):
    """m antithetic pairs mean +- root z, z standard normal with sample covariance exactly I.

    They are drawn once. The estimate is exact wherever the log density is quadratic, at any
    condition number, and its error elsewhere falls as 1 / sqrt(m); the solver doubles m until that
    error is below the tolerance. Second derivatives come from a regression of whitened scores on
    the design (Stein's identity E_q[hess log p] = E_q[grad log p (z - mean)'] S^-1), which needs m
    >= dim: not for dim above some hundreds (use a low-rank family there).

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

    def prepare(self, target: Density, q: AbstractFamily, key: Key) -> Float[np.ndarray, "m noise"]:
        rng, pairs = host_rng(key, "design"), self._pairs(q.dim)
        # Noise beyond the coordinates is that of a low-rank factor, which must not learn to cancel
        # the rest of it on these draws.
        if q.noise_dim is None or q.noise_dim == q.dim:
            return moment_matched(rng, pairs, q.dim)
        return matched_noise(rng, pairs, q.dim, q.noise_dim - q.dim)

    def evaluations_per_step(self, target: Density) -> float:
        return 2.0 * self._pairs(target.dim)

    def _pairs(self, dim: int) -> int:
        return self.pairs or max(dim, _LEAST_PAIRS)

    def surrogate(
        self,
        objective: AbstractObjective,
        target: Density,
        q: AbstractFamily,
        state: Float[Array, "m noise"],
        key: Key | None,
    ) -> tuple[Float[Array, ""], Float[Array, "m noise"]]:
        noise = jnp.concatenate([jnp.asarray(state), -jnp.asarray(state)])
        z = eqx.filter_vmap(q._from_noise)(noise)
        return objective.loss(evaluate(objective, target, q, z)), state

    def moments(
        self,
        target: Density,
        mean: Float[np.ndarray, "dim"],
        root: Float[np.ndarray, "dim dim"],
        design: Float[np.ndarray, "m dim"],
    ) -> Moments:
        """Whitened moments of the target under N(mean, root root') over the design."""
        moves = design @ root.T
        values, scores = batched(target)(np.concatenate([mean + moves, mean - moves]))
        log_det = float(np.linalg.slogdet(root)[1])
        return whitened_moments(design, values, scores @ root, log_det, xp=np)

    def enlarged(
        self, design: Float[np.ndarray, "m dim"], ratio: float, rng: np.random.Generator
    ) -> Float[np.ndarray, "more dim"] | None:
        """A new design two to four times larger, by how far the old one's error is above `tol`."""
        pairs, dim = design.shape
        size = larger_size(pairs, dim, ratio)
        return None if size is None else moment_matched(rng, size, dim)


def larger_size(pairs: int, dim: int, ratio: float) -> int | None:
    """Pairs of the next design, two to four times as many, where its error is `ratio` times `tol`.

    None where the design is at its largest.
    """
    growth = min(max(_LEAST_GROWTH, ratio**2), _MOST_GROWTH)
    grown = min(int(pairs * growth), max(_MOST_PAIRS * max(dim, _LEAST_PAIRS), pairs))
    return None if grown == pairs else grown


def moment_matched(rng: np.random.Generator, pairs: int, dim: int) -> Float[np.ndarray, "m dim"]:
    """Standard normal rows, rotated and scaled so that their second moment is exactly I.

    Where pairs < dim no rotation can do that, and the rows are as they were drawn.
    """
    z = rng.standard_normal((pairs, dim))
    if pairs < dim:
        return z
    eigenvalues, vectors = np.linalg.eigh(z.T @ z / pairs)
    return z @ ((vectors / np.sqrt(eigenvalues)) @ vectors.T)


def matched_noise(
    rng: np.random.Generator, pairs: int, dim: int, rank: int
) -> Float[np.ndarray, "m noise"]:
    """Normals `[pairs, dim + rank]`, the last `rank` columns orthogonal to each other and the rest.

    All columns have unit second moments. Without orthogonal columns the factor learns to cancel the
    diagonal part's noise on these draws, and q comes out too wide. With enough pairs all columns
    are orthogonal: then the ELBO of every quadratic log density is exact.
    """
    if pairs >= dim + rank:
        return np.linalg.qr(rng.standard_normal((pairs, dim + rank)))[0] * np.sqrt(pairs)
    own, shared = rng.standard_normal((pairs, dim)), rng.standard_normal((pairs, rank))
    shared = np.linalg.qr(shared)[0] * np.sqrt(pairs) if rank else shared
    own -= shared @ (shared.T @ own) / pairs
    own /= np.sqrt(np.mean(own**2, axis=0))
    return np.concatenate([own, shared], axis=1)


def whitened_moments(
    design: Float[Array, "m dim"],
    values: Float[Array, "both"],
    scores: Float[Array, "both dim"],
    log_det: Scalar,
    xp: ModuleType = np,
) -> Moments:
    """Moments from values and whitened scores at mean + root z (first half) and mean - root z.

    The even part of the scores is the gradient of the ELBO in the whitened mean, the odd part,
    regressed on the design, the whitened expected Hessian (Stein's identity). `log_det` is log
    |root|; `xp` is numpy on the host and jax.numpy in compiled code.
    """
    m, dim = design.shape
    odd, even = 0.5 * (scores[:m] - scores[m:]), 0.5 * (scores[:m] + scores[m:])
    half = design.T @ odd
    curvature = -0.5 * (half + half.T) / m
    residual = odd + design @ curvature  # of the regression of scores on the design
    # log p - log q of each pair, up to a constant: where q fits, log q takes all the variation off.
    pair_values = 0.5 * (values[:m] + values[m:]) + 0.5 * xp.sum(design**2, axis=1)
    entropy = log_det + 0.5 * dim * (1.0 + np.log(2 * np.pi))
    # One value that is not finite makes the whole step worthless: -inf, so that no search takes it.
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


__all__ = ["FixedDesign", "larger_size", "matched_noise", "moment_matched", "whitened_moments"]
