"""The certificate of a product of factors (coordinate ascent).

Exact where it can be, and silent where nothing is known.
"""

import time
from collections.abc import Callable
from typing import cast

import equinox as eqx
import numpy as np
from jaxtyping import Float

from .._numerics import host_algebra, to_device, x64
from .._types import Array, Estimate
from ..families.exponential.product import Product
from ..search.conjugate_form import as_conjugate
from ..search.factor_rule import distance, elbo, order, sweep
from ..targets.base import AbstractTarget, Conjugate, Density
from ..targets.conjugate.base import judged
from .certificate import CERTIFIERS, Certificate, Request, check
from .draws import NATIVE_VIEWS, viewed
from .finding import About, Finding, Verdict
from .fitted import Fitted, Pair
from .standards import STANDARDS, Standards

# Unconstrained coordinates up to which importance weights of the whole posterior say anything.
_MOST_DIMENSIONS = 1000


def check_factors(
    fitted: Fitted,
    check_view: Callable[[Fitted], Certificate],
    standards: Standards = STANDARDS,
) -> Certificate:
    """Exact findings of the factors, and those of weights where hidden factors can be summed out.

    `check_view` judges a fit on the unconstrained scale by draws.
    """
    started = time.perf_counter()
    target, q = as_conjugate(fitted.target), _product(fitted)
    with x64():
        bound, move = exact_findings(target, q, standards)
    exact = Estimate(bound.value, 0.0)
    weighable = isinstance(fitted.target, Density) and fitted.target.dim <= _MOST_DIMENSIONS
    if not weighable:
        found = (bound, move, unweighed(fitted.target))
        return Certificate(found, (bound.value, np.inf), exact, 0, time.perf_counter() - started)
    of_view = check_view(viewed(fitted))
    rest = tuple(finding for finding in of_view.findings if finding.name != move.name)
    lower, upper = of_view.log_evidence
    bounds = (max(lower, bound.value), upper)
    seconds = time.perf_counter() - started
    return Certificate((bound, move, *rest), bounds, exact, of_view.evaluations, seconds)


def exact_findings(
    target: Conjugate, q: Product, standards: Standards = STANDARDS
) -> tuple[Finding, Finding]:
    """The ELBO without Monte Carlo error, and how far one more round of updates would move q."""
    value, change = (float(x) for x in _bound_and_move(*to_device((target, q))))
    fine = bool(np.isfinite(value))
    bound = Finding(
        "elbo",
        value,
        0.0,
        None,
        Verdict.PASS if fine else Verdict.FAIL,
        f"The ELBO is {value:.4f} nats, exact (no Monte Carlo error): the log evidence is at least"
        " that."
        if fine
        else "The expected log joint is not finite at q.",
        "Blei et al. 2017, eq. 13",
        about=About.DENSITY,
    )
    verdict = (
        Verdict.PASS
        if change < standards.shift
        else Verdict.CAUTION
        if change < standards.shift_fail
        else Verdict.FAIL
    )
    why = (
        f"One more update of every factor would move none by more than {standards.shift:g} sd."
        if verdict is Verdict.PASS
        else (
            f"One more update of every factor would still move one by {change:.3g} sd; continue"
            " with tb.fit(target, fit.q)."
        )
    )
    move = Finding(
        "converged",
        change,
        0.0,
        standards.shift,
        verdict,
        why,
        "Khan & Rue 2023, eq. 6",
        about=About.SEARCH,
    )
    return bound, move


def unweighed(target: AbstractTarget) -> Finding:
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
def _bound_and_move(target: Conjugate, q: Product) -> tuple[Float[Array, ""], Float[Array, ""]]:
    return elbo(target, q), distance(sweep(target, q, order(q)), q)


def _product(fitted: Fitted) -> Product:
    # Of approximations on native values a fit returns products alone
    return cast(Product, fitted.q)


def _certify(fitted: Fitted, request: Request) -> Certificate:
    def check_view(view: Fitted) -> Certificate:
        return check(
            view,
            key=request.key,
            draws=request.draws,
            starts=request.starts,
            standards=request.standards,
            allowance=request.allowance,
        )

    with host_algebra():
        return check_factors(fitted, check_view, request.standards)


def _seen_from_space(fitted: Fitted) -> Fitted:
    """The shown factors of a product on the unconstrained scale: what weights can judge."""
    return Pair(judged(fitted.target, _product(fitted)), fitted.target)


CERTIFIERS["factors"] = _certify
NATIVE_VIEWS.append(_seen_from_space)

__all__ = ["check_factors", "exact_findings", "unweighed"]
