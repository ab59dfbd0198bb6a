"""The mixture rung: q and what is refitted at the optima that the certificate's searches found."""

import dataclasses
from typing import cast

import numpy as np

from ...certify.certificate import Certificate
from ...certify.finding import About, Verdict
from ...families.base import AbstractFamily
from ...families.gaussian import Gaussian
from ...families.mixture import Mixture
from ...solvers.natural import NaturalGradient
from .. import policy
from ..attempt import Attempt, Climber

_SEEN = 200  # draws that tell whether two components are apart


def mixture(attempt: Attempt, certificate: Certificate, climber: Climber) -> Attempt:
    """A mixture of q and of what is refitted at the rivals, weighted by their evidence.

    The log evidence of a component is taken as its ELBO: exact where it matches its mode, and the
    importance weights of the next certificate tell where it does not.
    """
    rivals = sorted(certificate.rivals, key=lambda rival: -rival.elbo)[: policy.MOST_RIVALS]
    parts, logits = _components(attempt)
    for rival in rivals:
        left = climber.left()
        if left is None:
            break
        start = Gaussian.from_root(rival.mean, rival.root)
        run = climber.run("Mixture", start, NaturalGradient(), left)
        if not run.result.usable:
            continue
        new = climber.attempted("Gaussian", run)
        # The other parts of the mixture cover what this one leaves out.
        if any(f.verdict is not Verdict.PASS for f in new.found if f.about is not About.ELSEWHERE):
            new = climber.nested(new, climber)
        if all(_apart(new.run.q, q) for q in parts):
            climber.drop(new)
            parts, logits = [*parts, new.run.q], [*logits, new.sample.elbo.value]
        else:  # it grew over both
            attempt = climber.better_of(attempt, new)
            parts, logits = _components(attempt) if attempt is new else (parts, logits)
    if len(parts) == len(_components(attempt)[0]):
        return attempt
    mixed = dataclasses.replace(attempt.run, q=Mixture(parts, np.array(logits)))
    return climber.better_of(attempt, climber.attempted("Mixture", mixed))


def _components(attempt: Attempt) -> tuple[list[AbstractFamily], list[float]]:
    """The parts of q with their log evidence: of a mixture its components, else q itself."""
    q = attempt.run.q
    parts = list(q.parts())
    if len(parts) == 1:
        return parts, [attempt.sample.elbo.value]
    return parts, list(np.asarray(cast(Mixture, q).logits))  # nothing else has several parts


def _apart(new: AbstractFamily, old: AbstractFamily) -> bool:
    """Whether draws of `new` lie where `old` has next to no density: then both are needed."""
    z, log_new = new.draw(_SEEN, 0)
    return float(np.median(log_new - old.log_prob_on_host(z))) > policy.APART
