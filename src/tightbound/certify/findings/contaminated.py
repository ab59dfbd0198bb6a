"""What the certificate of contaminated data adds: q's width against the noise, and the modes."""

import dataclasses
from typing import cast

import numpy as np
from jaxtyping import Float

from ...families.gaussian import Gaussian
from ...search.modes import modes
from ...targets.sites import Contaminated
from ..finding import About, Case, Finding, FindingDetail, Verdict, register

_SHOWN = 4  # modes whose places a sentence lists
# Variances of q, in units of the noise's, above which points no longer make its width: a single
# certain inlier would bring it down to 1.
_WIDE = 5.0


@dataclasses.dataclass(frozen=True)
class WidthDetail(FindingDetail):
    """`capped`: whether the annealed loop has cut q's variance to the noise's."""

    capped: bool


@dataclasses.dataclass(frozen=True)
class ModesDetail(FindingDetail):
    """The modes within 4 nats of the best: where they are, and Laplace's log evidence of each."""

    modes: tuple[Float[np.ndarray, "dim"], ...]
    log_evidence: tuple[float, ...]


@register("width", place=120, ability=Contaminated)
def width(case: Case) -> Finding:
    """The largest variance of q over the noise variance of the median point, in any direction.

    The analytic gradient is overconfident by about .35 of it, and its loop cuts it to 1: that cap
    is a caution.
    """
    # The ability that the finding is registered for
    kernels, q = cast(Contaminated, case.sample.target).kernels(), case.q
    gaussian = q.covariance_structure != "none"
    # A Gaussian knows its covariance to the digits that tell whether it is at the cap
    cov = (
        np.asarray(cast(Gaussian, q).cov)
        if gaussian
        else np.cov(case.sample.z.T).reshape(q.dim, q.dim)
    )
    white = np.linalg.solve(kernels.root, np.linalg.solve(kernels.root, cov).T)
    ratio = float(np.linalg.eigvalsh(0.5 * (white + white.T))[-1] / kernels.median_scale)
    capped = gaussian and abs(ratio - 1.0) < case.standards.width_cap
    if capped:
        why = (
            "The largest variance of q is exactly the noise variance: the annealed loop has cut it"
            " there, and q is too narrow. Polish it (tb.fit(target, fit.q)), or fit with the"
            " default."
        )
    else:
        why = f"The largest variance of q is {ratio:.3g} times that of the noise."
        why += " It is dominated by the prior and the background." if ratio > _WIDE else ""
    return Finding(
        "width",
        ratio,
        np.nan,
        None,
        Verdict.CAUTION if capped else Verdict.PASS,
        why,
        "docs/clutter.md",
        detail=WidthDetail(bool(capped)),
    )


@register("modes", place=130, ability=Contaminated)
def multimodality(case: Case) -> Finding:
    """Modes within 4 nats of the best one's evidence, from mean shift.

    Whether q covers them is for `optima` to say.
    """
    target, close_to = cast(Contaminated, case.sample.target), case.standards.rival
    kernels = target.kernels()
    found = modes(kernels)
    close = [mode for mode in found if mode.log_evidence > found[0].log_evidence - close_to]
    places = tuple(kernels.root @ mode.mean for mode in close)
    listed = ", ".join(np.array2string(place, precision=3) for place in places[:_SHOWN])
    plural = len(close) > 1
    why = (
        f"Mean shift from the points found {len(close)} mode{'s' if plural else ''} within"
        f" {close_to:.0f} nats, at {listed}."
    )
    return Finding(
        "modes",
        float(len(close)),
        np.nan,
        None,
        Verdict.PASS,
        why,
        "docs/clutter.md",
        tuple(target.coordinate_names[:3]) if plural else (),
        ModesDetail(places, tuple(mode.log_evidence for mode in close)),
        About.ELSEWHERE,
    )


__all__ = ["ModesDetail", "WidthDetail", "multimodality", "width"]
