"""The certificate of a product of factors (coordinate ascent).

Exact where it can be, and silent where nothing is known.
"""

import time
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import numpy as np

from .._numerics import to_device, x64
from .._types import Estimate
from ..families.exponential.product import Product
from ..search.conjugate_form import as_conjugate
from ..search.factor_rule import distance, elbo, order, sweep
from ..targets.base import Density
from ..targets.conjugate.base import judged
from .finding import Certificate, Finding, Verdict
from .fitted import Fitted, Pair

_MOVE = 0.05  # sds that the updates may still move a member of a factor
# unconstrained coordinates up to which importance weights of the whole posterior say anything
_MOST_DIMENSIONS = 1000


def viewed(fitted: Any) -> Any:
    """`fitted` itself, or the view of its shown factors where q is a product on native values."""
    if fitted.q.space != "native":
        return fitted
    return Pair(judged(fitted.target, fitted.q), fitted.target, getattr(fitted, "seed", 0))


def check_factors(fitted: Fitted, check_view: Callable[[Any], Certificate]) -> Certificate:
    """Exact findings of the factors, and those of importance weights where the hidden ones can be
    summed out.

    `check_view` judges a fit on the unconstrained scale by draws.
    """
    started = time.perf_counter()
    target, q = as_conjugate(fitted.target), fitted.q
    with x64():
        bound, move = exact_findings(target, q)
    weighable = isinstance(fitted.target, Density) and fitted.target.dim <= _MOST_DIMENSIONS
    if not weighable:
        found = (bound, move, unweighed(fitted.target, q))
        value = Estimate(bound.value, 0.0)
        return Certificate(found, (bound.value, np.inf), value, 0, time.perf_counter() - started)
    of_view = check_view(viewed(fitted))
    rest = tuple(finding for finding in of_view.findings if finding.name != "converged")
    lower, upper = of_view.log_evidence
    exact = Estimate(bound.value, 0.0)
    bounds = (max(lower, bound.value), upper)
    return Certificate(
        (bound, move, *rest), bounds, exact, of_view.evaluations, time.perf_counter() - started
    )


def exact_findings(target: Any, q: Product) -> tuple[Finding, Finding]:
    """The ELBO without Monte Carlo error, and how far one more round of updates would move q."""
    target, q = to_device(target), to_device(q)
    value, change = (float(x) for x in _bound_and_move(target, q))
    fine = bool(np.isfinite(value))
    bound = Finding(
        "elbo", value, 0.0, None, Verdict.PASS if fine else Verdict.FAIL,
        f"The ELBO is {value:.4f} nats, exact (no Monte Carlo error): the log evidence is at least that."
        if fine
        else "The expected log joint is not finite at q.",
        "Blei et al. 2017, eq. 13",
    )  # fmt: skip
    small = change < _MOVE
    verdict = Verdict.PASS if small else Verdict.CAUTION if change < 1.0 else Verdict.FAIL
    why = (
        f"One more update of every factor would move none by more than {_MOVE} sd."
        if small
        else (
            f"One more update of every factor would still move one by {change:.3g} sd; continue"
            " with tb.fit(target, fit.q)."
        )
    )
    source = "Khan & Rue 2023, eq. 6"
    return bound, Finding("converged", change, 0.0, _MOVE, verdict, why, source)


def unweighed(target: Any, q: Product) -> Finding:
    """What no importance weight can say of this model, as a finding: a caution, and no number."""
    if isinstance(target, Density):
        reason = f"its {target.dim:,} coordinates are too many for importance weights"
    else:
        reason = (
            "no density of the shown values is known (local factors that meet in one term cannot be"
            " summed out)"
        )
    why = (
        f"How far q is from the posterior cannot be said here: {reason}. The ELBO is a lower bound"
        " with no upper one; mean-field sds are too small where factors are correlated."
    )
    return Finding("khat", np.nan, np.nan, None, Verdict.CAUTION, why, "docs/coordinate-ascent.md")


@eqx.filter_jit
def _bound_and_move(target: Any, q: Product) -> tuple[jax.Array, jax.Array]:
    return elbo(target, q), distance(sweep(target, q, order(q)), q)


__all__ = ["check_factors", "exact_findings", "viewed"]
