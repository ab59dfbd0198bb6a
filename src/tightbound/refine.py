"""`tb.refine`.

From an amortised answer at one data set to a closer one, where prior and likelihood are known.
"""

import time
from typing import Any

import numpy as np

from ._numerics import host_algebra, key_words, x64
from .certify.draws import fresh_draws
from .certify.fitted import Pair
from .families.gaussian import Gaussian
from .fit import Fit, fit
from .loop import Trace
from .results import PairingError, Result
from .solvers.natural import NaturalGradient
from .solvers.samplers import NUTS
from .targets.simulator import has_density

_ROUNDS = 8
_DRAWS = 4000
_RESOLVED = 0.02  # posterior sds of the mean, or relative in the sd
HOW = ("elbo", "wake", "nuts")


def refine(posterior: Any, how: str = "elbo", *, key: Any = 0, **options: Any) -> Fit:
    """A closer approximation at the data of `posterior`, started from the amortised one: it keeps
    the basin, and sharpens.

    The cheapest refinement needs no fit: `posterior.sample(key, n, corrected=True)` resamples by
    smoothed importance weights, and `posterior.certificate.khat` says whether these can be trusted.
    It costs one density for each draw.

    Arguments:
        posterior: what `fit.at(x)` returned, for one data set.
        how: "elbo", a full-rank Gaussian by natural gradient from the moments of q; "wake", the
            Gaussian closest in
        forward KL
            (mass-covering), by importance-weighted moments of its own draws until they stand still;
            "nuts", chains of the No-U-Turn sampler, in coordinates whitened by q (needs the extra
            `samplers`).
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


def _matched(fitted: Any, key: Any) -> Gaussian:
    """The Gaussian of the posterior's moments by importance weights on draws of q.

    Of q's own where these fail.
    """
    with x64(), host_algebra():
        drawn = fresh_draws(
            fitted, int(np.random.SeedSequence(list(key_words(key))).generate_state(1)[0]), _DRAWS
        )
    smoothed = drawn.smoothed
    usable = smoothed.khat < 0.7 and smoothed.ess > 20 * drawn.z.shape[1]
    weights = smoothed.weights if usable else np.full(len(drawn.z), 1 / len(drawn.z))
    mean = weights @ drawn.z
    centred = np.sqrt(weights)[:, None] * (drawn.z - mean)
    return Gaussian.from_root(mean, centred.T)


def _wake(posterior: Any, q: Gaussian, key: Any) -> Fit:
    """q <- N(E_p z, Cov_p z), expectations by importance sampling from q, until they move by less
    than their noise.
    """
    started, steps, changes, result = time.perf_counter(), 0, [], Result.max_steps
    seed = int(np.random.SeedSequence(list(key_words(key))).generate_state(1)[0])
    for steps in range(1, _ROUNDS + 1):
        new = _matched(Pair(q, posterior.target), seed + steps)
        change = max(
            np.max(np.abs(new.mean - q.mean) / q.sd), np.max(np.abs(np.log(new.sd / q.sd)))
        )
        changes.append(float(change))
        q = new
        if change < _RESOLVED + 3 / np.sqrt(_DRAWS):
            result = Result.converged
            break
    loss, used = np.full(steps, np.nan), _DRAWS * np.arange(1.0, steps + 1)
    seconds = time.perf_counter() - started
    trace = Trace(loss, np.array(changes), used)
    rung = "wake-phase forward KL from an amortised answer"
    return Fit(
        q,
        posterior.target,
        result,
        steps,
        trace,
        _DRAWS * (steps + 1),
        seconds,
        key_words(key),
        rung,
    )


__all__ = ["refine"]
