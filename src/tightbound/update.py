"""`update(fit, new_data)`: yesterday's posterior is today's prior."""

from typing import Unpack, cast

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike

from ._numerics import host_algebra
from ._types import PyTree, Validated
from .families.base import AbstractFamily
from .families.empirical import Empirical
from .families.gaussian import Gaussian
from .fit import Fit, FitOptions, fit
from .targets.base import Sequential, require

_DRAWS = 8192  # of a q that is no Gaussian, for its moments


def update(
    fitted: Fit,
    new_data: PyTree,
    *,
    process_noise: Validated[ArrayLike | None, "_noise"] = None,
    **options: Unpack[FitOptions],
) -> Fit:
    """Fit the same model to new data only, with the Gaussian of `fitted.q` as the prior.

    For filtering, tracking and mini-batches. Assumed-density filtering: everything the past says
    is carried by the mean and covariance of q on the unconstrained scale. For a model whose rows
    are independent given the parameters, and a posterior close to a Gaussian, a chain of updates
    ends where one fit of all data does; what q gets wrong once stays in the chain. Not for data
    that share latent values with yesterday's, and not where the posterior has several modes (a
    mixture is reduced to its moments).

    Arguments:
        fitted: an earlier fit, or the result of an earlier update.
        new_data: what the target takes: for `tb.from_rows` new rows, for `Clutter` new points or a
            dict of its arguments (`x`, and `w`, `vg`, `log_clutter`, `weights` where they differ),
            for `LinearClutter` a dict of `directions` and `y`.
        process_noise: covariance added to q's before it becomes the prior, since the parameters may
            have moved in between: a variance, one for each coordinate `[d]`, or `[d, d]`; on the
            unconstrained scale. None where nothing moves.
        options: further arguments of `tb.fit`, such as `key`, `solver` or `budget`; with a
            `solver`, q starts from `fitted.q`.

    Returns:
        a Fit whose `target` holds the new prior and data; pass it to the next `update`.

    Raises:
        PairingError: the target cannot take a Gaussian prior and new data.
        TargetError: the new data do not fit the model.
        ValueError: `process_noise` is negative, not finite, or of the wrong shape.
    """
    seen = require("update", fitted.target, Sequential)
    with host_algebra():
        mean, cov = _moments(fitted.q)
        cov = cov + _noise(process_noise, len(mean))
    target = seen.after(mean, cov, new_data)
    if options.get("solver") is not None and "q" not in options:
        options["q"] = fitted.q
    return fit(target, **options)


def _moments(
    q: AbstractFamily,
) -> tuple[Float[np.ndarray, "dim"], Float[np.ndarray, "dim dim"]]:
    """Mean and covariance: of a Gaussian and of a sampler's draws their own, else of draws of q."""
    if q.covariance_structure != "none" or not q.has_density:
        known = cast(Gaussian | Empirical, q)
        return np.asarray(known.mean, np.float64), np.asarray(known.cov, np.float64)
    # At least four draws for each coordinate, so that the covariance is not singular.
    z, _ = q.draw(max(_DRAWS, 4 * q.dim), 0)
    return z.mean(axis=0), np.cov(z.T).reshape(q.dim, q.dim)


def _noise(value: Validated[ArrayLike | None, "here"], dim: int) -> Float[np.ndarray, "dim dim"]:
    """The process noise as a covariance."""
    noise = np.asarray(0.0 if value is None else value, np.float64)
    if noise.shape not in ((), (dim,), (dim, dim)):
        raise ValueError(
            f"update: `process_noise` must be a variance, [{dim}] or [{dim}, {dim}], got shape"
            f" {noise.shape}."
        )
    matrix = noise if noise.ndim == 2 else noise * np.eye(dim)
    bad = not np.all(np.isfinite(matrix)) or not np.allclose(matrix, matrix.T)
    # -1e-12: the least eigenvalue of a singular covariance is zero up to rounding, of either sign
    if bad or np.linalg.eigvalsh(matrix)[0] < -1e-12 * np.abs(matrix).max():
        raise ValueError("update: `process_noise` must be finite, symmetric and not negative.")
    return matrix


__all__ = ["update"]
