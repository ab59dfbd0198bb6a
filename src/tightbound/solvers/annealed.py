"""The clutter paper's method as a solver: the annealed fixed-point loop of contaminated data."""

from typing import ClassVar

import equinox as eqx
import numpy as np

from .._types import Key
from ..families.base import AbstractFamily
from ..objectives.base import AbstractObjective
from ..results import PairingError, Result
from ..starts.annealed import AnnealedState, advanced, first_state, gaussian_of, rule_named
from ..targets.base import AbstractTarget, require
from ..targets.sites import Contaminated
from .base import AbstractSolver, Info, check_full_rank, check_no_objective


class Annealed(AbstractSolver):
    """The paper's loop: a moment fixed point with kernels of variance h, annealed from 2 v to vg.

    For contaminated data. After each update h <- max(min(2 v, h / 2), vg) and v <- min(v, max(vg, h
    / 2)). So the variance of q ends at vg at most: where few points are inliers and the posterior
    is wider than a kernel, q is far too narrow. It starts from the mean and variance of the points
    and ignores q. A robust start (NaturalGradient with GaussHermite polishes it), and the
    reproduction of the paper; not the best Gaussian: overconfident by about .35 v / vg. There is no
    ELBO: the trace's loss is NaN. Not for anything but contaminated data.

    Arguments:
        rule: "paper" (one dimension, Algorithm 1), "natural" (any dimension: natural-gradient steps
            with the same moments and schedule), or None: "paper" in one dimension, "natural" in
            more.

    Source: Popov 2024 (arXiv 2404.10550), Algorithm 1. The natural rule has the same fixed point:
    it moves q by the gradient and the curvature that the algorithm's sums amount to.
    """

    rule: str | None = eqx.field(default=None, static=True)
    compiled: ClassVar[bool] = False

    def __check_init__(self):
        if self.rule not in (None, "paper", "natural"):
            raise ValueError(
                f"Annealed: `rule` must be 'paper', 'natural' or None, got {self.rule!r}."
            )

    def check(
        self, target: AbstractTarget, q: AbstractFamily, objective: AbstractObjective | None
    ) -> None:
        data = require(self, target, Contaminated)
        check_no_objective(self, objective, "follows the paper's own fixed point")
        check_full_rank(self, q)
        if self.rule == "paper" and data.dim > 1:
            raise PairingError(
                f"Annealed: the paper's rule is for one dimension, the target has {data.dim}; use"
                " rule='natural'."
            )

    def init(
        self,
        target: AbstractTarget,
        q: AbstractFamily,
        objective: AbstractObjective | None,
        key: Key,
        tol: float,
    ) -> AnnealedState:
        return first_state(require(self, target, Contaminated).kernels(), tol)

    def step(
        self,
        target: AbstractTarget,
        q: AbstractFamily,
        objective: AbstractObjective | None,
        state: AnnealedState,
        key: Key,
    ) -> tuple[AbstractTarget, AbstractFamily, AnnealedState, Info]:
        new = advanced(state, rule_named(self.rule, state.kernels.dim))
        return target, gaussian_of(new), new, Info(np.float64(np.nan), np.float64(new.change), 1)

    def done(self, state: AnnealedState) -> Result | None:
        return state.result


__all__ = ["Annealed"]
