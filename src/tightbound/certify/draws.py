"""The draws that all findings share: fresh from q, with everything that was evaluated at them."""

import dataclasses
import functools
from typing import Any

import numpy as np

from .._types import Estimate
from ..targets.base import Density
from ..targets.batched import batched
from ..targets.values import constrain_batch, flatten_values
from .fitted import Fitted
from .psis import SmoothedWeights, smooth


@dataclasses.dataclass(frozen=True)
class FreshDraws:
    """S draws of q: `z [S, d]`, `log_q [S]`, `log_p [S]`, `scores [S, d]` (gradients of log p),
    nats.

    Draw i and draw i + S/2 may be mirror images: standard errors are taken over such pairs.
    `evaluations`: gradients used.
    """

    target: Any
    z: np.ndarray
    log_q: np.ndarray
    log_p: np.ndarray
    scores: np.ndarray
    evaluations: int = 0

    @functools.cached_property
    def finite(self) -> np.ndarray:
        """Which draws have a finite log density and score, `[S]`."""
        return np.isfinite(self.log_p) & np.all(np.isfinite(self.scores), axis=1)

    @functools.cached_property
    def log_w(self) -> np.ndarray:
        """Log importance weights; -inf where the log density is not finite."""
        return np.where(np.isfinite(self.log_p), self.log_p - self.log_q, -np.inf)

    @functools.cached_property
    def smoothed(self) -> SmoothedWeights:
        return smooth(self.log_w)

    @functools.cached_property
    def named(self) -> Any:
        """The user's values at the draws, a pytree with leading axis S."""
        return constrain_batch(self.target, self.z)

    @functools.cached_property
    def values(self) -> tuple[tuple[str, ...], np.ndarray]:
        """Names and columns `[S, P]` of the user's values."""
        return flatten_values(self.named)

    @functools.cached_property
    def elbo(self) -> Estimate:
        """Mean of log p - log q over the draws; -inf where a draw has zero density."""
        if not np.all(np.isfinite(self.log_w)):
            return Estimate(-np.inf, np.nan)
        pairs = 0.5 * (self.log_w[: len(self.z) // 2] + self.log_w[len(self.z) // 2 :])
        return Estimate(float(self.log_w.mean()), float(pairs.std() / np.sqrt(len(pairs))))


def fresh_draws(fitted: Fitted, key: Any, draws: int) -> FreshDraws:
    """Draw from `fitted.q` and evaluate the target there: `draws` gradients of the log density."""
    z, log_q = fitted.q.draw(draws, key)
    if not isinstance(fitted.target, Density):  # nothing weighs them: all weights are equal
        return FreshDraws(fitted.target, z, log_q, log_q.copy(), np.zeros_like(z), 0)
    log_p, scores = batched(fitted.target)(z)
    return FreshDraws(fitted.target, z, log_q, log_p, scores, draws)
