"""`tb.refine`: from an amortised answer at one data set to a closer one, by its density."""

import time
from typing import Unpack

import numpy as np

from ._numerics import host_algebra, key_words, x64
from ._types import Key, Validated
from .account import Spent, Stage
from .amortised.posterior import Posterior
from .certify.draws import fresh_draws
from .certify.fitted import Fitted, Pair
from .certify.standards import EFFORT, STANDARDS
from .families.gaussian import Gaussian
from .fit import Fit, FitLimits, fit
from .loop import Trace
from .results import PairingError, Result
from .solvers.natural import NaturalGradient
from .solvers.nuts import NUTS
from .targets.simulator import has_density

_ROUNDS = 8  # of wake-phase updates; from an amortised q two or three are usual
_DRAWS = EFFORT.draws  # for the moments: their Monte Carlo error is 1.6 % of an sd
_DRAWS_PER_COORDINATE = 20  # effective draws that a covariance needs for each coordinate
_RESOLVED = 0.02  # posterior sds of the mean, or relative in the sd
HOW = ("elbo", "wake", "nuts")


def refine(
    posterior: Posterior,
    how: Validated[str, "below"] = "elbo",
    *,
    key: Key = 0,
    **options: Unpack[FitLimits],
) -> Fit:
    """A closer approximation at the data of `posterior`, started from the amortised one.

    It keeps the basin, and sharpens. The cheapest refinement needs no fit:
    `posterior.sample(key, n, corrected=True)` resamples by smoothed importance weights, and
    `posterior.certificate.khat` says whether these can be trusted. It costs one density for each
    draw.

    Arguments:
        posterior: what `fit.at(x)` returned, for one data set.
        how: "elbo", a full-rank Gaussian by natural gradient from the moments of q; "wake", the
            Gaussian closest in forward KL (mass-covering), by importance-weighted moments of its
            own draws until they stand still; "nuts", chains of the No-U-Turn sampler, in
            coordinates whitened by q (needs the extra `samplers`).
        key: of the draws.
        options: go to `tb.fit` ("elbo", "nuts").

    Raises:
        PairingError: the simulator has no densities, or has angles, which are not on a line.
        ValueError: an unknown `how`.
    """
    if how not in HOW:
        raise ValueError(f"refine: `how` must be one of {', '.join(map(repr, HOW))}, got {how!r}.")
    if not has_density(posterior.simulator):
        raise PairingError(
            "refine: pass `log_prior` and `log_likelihood` to tb.from_simulator; there is no"
            " density to refine by."
        )
    if any(posterior.simulator.circular):
        raise PairingError(
            "refine: some parameters are angles, and a density that is periodic on the line has no"
            " mean. Resample instead: posterior.sample(key, n, corrected=True)."
        )
    start = _matched(posterior, key)
    if how == "wake":
        return _wake(posterior, start, key)
    solver = NaturalGradient() if how == "elbo" else NUTS()
    return fit(posterior.target, start, solver=solver, key=key, **options)


def _matched(fitted: Fitted, key: Key) -> Gaussian:
    """The Gaussian with the posterior's moments, by importance weights on draws of q.

    With q's own moments where the weights fail.
    """
    with x64(), host_algebra():
        drawn = fresh_draws(fitted, _seed(key), _DRAWS)
    smoothed = drawn.smoothed
    enough = _DRAWS_PER_COORDINATE * drawn.z.shape[1]
    usable = smoothed.khat < STANDARDS.khat and smoothed.ess > enough
    weights = smoothed.weights if usable else np.full(len(drawn.z), 1 / len(drawn.z))
    mean = weights @ drawn.z
    # A square root of the weighted covariance, [dim, n]: the covariance itself need not be formed.
    centred = np.sqrt(weights)[:, None] * (drawn.z - mean)
    return Gaussian.from_root(mean, centred.T)


def _wake(posterior: Posterior, q: Gaussian, key: Key) -> Fit:
    """q <- N(E_p z, Cov_p z), by importance sampling from q, until it moves less than its noise."""
    started, steps, changes, result = time.perf_counter(), 0, [], Result.max_steps
    seed = _seed(key)
    for steps in range(1, _ROUNDS + 1):
        # The key differs in every round: on the same draws q would settle at their noise
        new = _matched(Pair(q, posterior.target), seed + steps)
        change = max(
            np.max(np.abs(new.mean - q.mean) / q.sd), np.max(np.abs(np.log(new.sd / q.sd)))
        )
        changes.append(float(change))
        q = new
        # Three standard errors of a mean over the draws, in sds: no round can do better
        if change < _RESOLVED + 3 / np.sqrt(_DRAWS):
            result = Result.converged
            break
    # The loss of a wake phase is E_p[-log q], which is not estimated
    trace = Trace(np.full(steps, np.nan), np.array(changes), _DRAWS * np.arange(1.0, steps + 1))
    return Fit(
        q,
        posterior.target,
        result,
        steps,
        trace,
        Spent({"wake phase": Stage(_DRAWS * (steps + 1), time.perf_counter() - started)}),
        key_words(key),
        "wake-phase forward KL from an amortised answer",
    )


def _seed(key: Key) -> int:
    """One integer of the key, from which the rounds count on."""
    return int(np.random.SeedSequence(list(key_words(key))).generate_state(1)[0])


__all__ = ["refine"]
