"""Every way a run can end, one helpful sentence each.

A result is data, not an exception: nothing that was computed is lost. `fit(throw=True)` raises
`FitError` only when no usable approximation exists, and the error carries the fit.
"""

import enum


class Result(enum.Enum):
    """How a run ended; the value is the sentence that the user reads."""

    converged = "The fit converged."
    stationary = (
        "The stochastic fit is stationary: averaging its iterates no longer improves it by more"
        " than the tolerance."
    )
    held_out = "The loss on held-out simulations no longer falls."
    max_steps = (
        "The fit stopped at `max_steps` before it converged. Pass a larger `max_steps`, or continue"
        " with tb.fit(target, fit.q)."
    )
    budget = (
        "The fit stopped at its `budget` before it converged. What it had is returned; continue"
        " with tb.fit(target, fit.q)."
    )
    interrupted = (
        "The fit was interrupted (Ctrl-C). What it had is returned; continue with tb.fit(target,"
        " fit.q)."
    )
    stalled = (
        "No step improved the objective any further although its gradient is not yet small:"
        " rounding in the log density, or a kink in it, hides the way up. Is the density computed"
        " in float64 and smooth?"
    )
    noisy = (
        "The design could not be made large enough to bring the sampling error of the means below"
        " `tol`: the posterior is far from this family. The certificate says by how much."
    )
    unmatched = (
        "Some sites could not be matched: their cavities stayed improper, so they were skipped."
        " Damp the updates (tb.solvers.EP(damping=0.5)), or use NaturalGradient."
    )
    unenclosed = (
        "The lattice of knots does not hold the whole posterior: its tails go on, or a ridge is"
        " thinner than a step. q is the Gaussian that it began from; use tb.solvers.Nested(), a"
        " StudentT, or tb.solvers.NUTS()."
    )
    unbounded = (
        "The log density has a flat (improper) direction: the approximation grew without bound"
        " along it. Give the parameter named in the certificate a proper prior, or fix it."
    )
    mixed = "The sampler made the draws that were asked for, and its chains agree."
    unmixed = (
        "The sampler made the draws that were asked for, but its chains do not agree yet, or hold"
        " too few effective draws. Ask for more (`draws`, `warmup`), start from a better q, or"
        " write the model in another form."
    )
    nonfinite = (
        "The log density became NaN or infinite so often that no step could be taken; the last good"
        " state is returned. Likely causes: (a) a parameter leaves the region where the model is"
        " defined (pass `support`), (b) overflow in exp or a division by zero, (c) NaN in the data."
    )

    def __init__(self, _: str):
        self.ok = self.name in ("converged", "stationary", "mixed", "held_out")
        """Whether the run reached the optimum that it looked for."""
        self.usable = self.name != "nonfinite"
        """Whether q is an approximation at all: finite, from at least one good evaluation."""

    def __str__(self) -> str:
        return self.value


class FitError(RuntimeError):
    """No usable approximation exists; `.fit` holds what the run had (or None)."""

    def __init__(self, message: str, fit: object = None):
        super().__init__(message)
        self.fit = fit


class TargetError(ValueError):
    """The target, its example, support or data is not something that can be fitted.

    The message names which.
    """


class PairingError(TypeError):
    """Target, family, objective, estimator and solver do not fit together.

    The message says which and what would.
    """


class MissingExtraError(ImportError):
    """An optional dependency is needed; the message says what to install."""

    def __init__(self, package: str, extra: str, purpose: str):
        super().__init__(
            f"{purpose} needs `{package}`. Install it with: pip install 'tightbound[{extra}]'"
        )
