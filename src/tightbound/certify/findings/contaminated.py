"""What the certificate of contaminated data adds.

How wide q is against the noise, and how many modes the posterior has.
"""

from typing import Any

import numpy as np

from ...search.modes import modes
from ...targets.sites import Kernels
from ..draws import FreshDraws
from ..finding import Finding, Verdict

_AT_THE_CAP = 1e-6  # relative: the annealed loop cuts variances to exactly vg
_CLOSE = 4.0  # nats of evidence within which a mode counts


def contaminated(q: Any, sample: FreshDraws) -> tuple[Finding, Finding]:
    """The findings `width` and `modes` of a fit of contaminated data."""
    kernels = sample.target.kernels()
    return width(q, sample, kernels), multimodality(kernels, sample.target.coordinate_names)


def width(q: Any, sample: FreshDraws, kernels: Kernels) -> Finding:
    """v / vg: the largest variance of q over the noise variance of the median point, in any
    direction.

    The analytic gradient is overconfident by about .35 of it, and its loop cuts it to 1: that cap
    is a caution.
    """
    cov = np.asarray(q.cov) if hasattr(q, "cov") else np.cov(sample.z.T).reshape(q.dim, q.dim)
    white = np.linalg.solve(kernels.root, np.linalg.solve(kernels.root, cov).T)
    ratio = float(np.linalg.eigvalsh(0.5 * (white + white.T))[-1] / kernels.median_scale)
    capped = hasattr(q, "cov") and abs(ratio - 1.0) < _AT_THE_CAP
    if capped:
        why = (
            "The largest variance of q is exactly the noise variance: the annealed loop has cut it"
            " there, and q is too narrow. Polish it (tb.fit(target, fit.q)), or fit with the"
            " default."
        )
    else:
        why = f"The largest variance of q is {ratio:.3g} times that of the noise."
        why += " It is dominated by the prior and the background." if ratio > 5 else ""
    verdict = Verdict.CAUTION if capped else Verdict.PASS
    detail = {"capped": bool(capped)}
    return Finding("width", ratio, np.nan, None, verdict, why, "docs/clutter.md", detail=detail)


def multimodality(kernels: Kernels, names: tuple[str, ...]) -> Finding:
    """Modes within 4 nats of the best one's evidence, from mean shift.

    Whether q covers them is for `optima` to say.
    """
    found = modes(kernels)
    close = [mode for mode in found if mode.log_evidence > found[0].log_evidence - _CLOSE]
    places = [kernels.root @ mode.mean for mode in close]
    listed = ", ".join(np.array2string(place, precision=3) for place in places[:4])
    plural = len(close) > 1
    why = (
        f"Mean shift from the points found {len(close)} mode{'s' if plural else ''} within"
        f" {_CLOSE:.0f} nats, at {listed}."
    )
    detail = {"modes": places, "log_evidence": [mode.log_evidence for mode in close]}
    where = tuple(names[:3]) if plural else ()
    return Finding(
        "modes",
        float(len(close)),
        np.nan,
        None,
        Verdict.PASS,
        why,
        "docs/clutter.md",
        where,
        detail,
    )


__all__ = ["contaminated"]
