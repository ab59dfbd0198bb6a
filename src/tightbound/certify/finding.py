"""Question 4: how far off is it? What a finding is, and the registry that a certificate runs.

Adding one is a file in certify/findings/ with a function that `register` enters; nothing else in
the library names it.
"""

import bisect
import dataclasses
import enum
from collections.abc import Callable
from typing import ClassVar, Literal, TypeAlias, TypeVar

import numpy as np
from jaxtyping import Float

from .._types import Estimate
from ..families.base import AbstractFamily
from ..targets.base import AbstractTarget, Density
from .draws import FreshDraws
from .standards import EFFORT, STANDARDS, Effort, Standards


class Verdict(enum.StrEnum):
    """What a user may do with the answer; ordered from best to worst."""

    PASS = "pass"
    CAUTION = "caution"
    FAIL = "fail"


NAMED = 5
"""Values that a finding points at, the worst ones."""

SEVERITY = {verdict: place for place, verdict in enumerate(Verdict)}
"""How bad a verdict is: the verdict of a certificate is the worst of its findings'."""


class About(enum.StrEnum):
    """What a finding's doubt is about, and so what could settle it."""

    FIT = "fit"
    """How q differs from the posterior where q has draws: a richer family could settle it."""
    ELSEWHERE = "elsewhere"
    """Mass where q has none: a mixture could."""
    TAILS = "tails"
    """Long tails of the posterior itself: no family could."""
    SEARCH = "search"
    """Whether the search (the training, the chains) has arrived: going on could."""
    DENSITY = "density"
    """The model, its density or its simulations: only the user could."""
    BUDGET = "budget"
    """What was left out because the budget was spent."""


@dataclasses.dataclass(frozen=True)
class FindingDetail:
    """The numbers behind a finding, for tables and plots; no part of its verdict.

    A finding with numbers of its own has a subclass of this: a frozen dataclass of arrays, numbers
    and strings, which a saved fit keeps. This class itself holds nothing.
    """

    # Kept by the class itself, so that storage need not know what findings there are.
    kinds: ClassVar[dict[str, type["FindingDetail"]]] = {}
    """All subclasses by name: what a saved fit may hold."""

    def __init_subclass__(cls) -> None:
        known = FindingDetail.kinds.setdefault(cls.__name__, cls)
        # The same module again is one that was loaded anew, whose classes replace the old ones.
        if known.__module__ != cls.__module__:
            raise TypeError(
                f"Two details of findings are called {cls.__name__} (in {known.__module__} and in"
                f" {cls.__module__}): a saved fit could not tell them apart. Rename one."
            )
        FindingDetail.kinds[cls.__name__] = cls


FindingDetail.kinds[FindingDetail.__name__] = FindingDetail


@dataclasses.dataclass(frozen=True)
class Rival(FindingDetail):
    """Another optimum, which q misses: N(mean, root root') and its ELBO, nats."""

    elbo: float
    mean: Float[np.ndarray, "dim"]
    root: Float[np.ndarray, "dim dim"]


@dataclasses.dataclass(frozen=True)
class EvidenceDetail(FindingDetail):
    """Bounds on the log evidence from q's own draws, with their standard errors, nats."""

    lower: float
    lower_stderr: float
    upper: float
    upper_stderr: float
    elbo: Estimate


@dataclasses.dataclass(frozen=True, kw_only=True)
class MissedMass(FindingDetail):
    """What a finding that looks beside q says of the log evidence, nats.

    Attributes:
        rivals: other optima that hold mass outside q.
        missed: log evidence of each mass outside q: added to the upper bound.
        seen: an estimate from below of the whole: the upper bound is at least that.
    """

    rivals: tuple[Rival, ...] = ()
    missed: tuple[float, ...] = ()
    seen: float = -np.inf


@dataclasses.dataclass(frozen=True)
class NotExamined(FindingDetail):
    """The names of the findings that a budget left out."""

    names: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Finding:
    """One check of a fit: a number against a threshold, a verdict, and one sentence why.

    Attributes:
        value: the number; its unit is in `why`.
        stderr: Monte Carlo standard error of `value` (NaN where it has none).
        threshold: the largest (or smallest, see `why`) value that passes; None for what is only
            reported.
        source: where the check comes from.
        where: the parameters that the finding points at, worst first.
        detail: per-parameter numbers and the like, for tables and plots; not part of the verdict.
        about: what a doubt is about.
    """

    name: str
    value: float
    stderr: float
    threshold: float | None
    verdict: Verdict
    why: str
    source: str
    where: tuple[str, ...] = ()
    detail: FindingDetail = dataclasses.field(default_factory=FindingDetail)
    about: About = About.FIT


def not_examined(names: tuple[str, ...]) -> Finding:
    """What stands in a certificate for findings that a budget left out: a caution, never a pass."""
    return Finding(
        "not examined",
        float(len(names)),
        np.nan,
        0.0,
        Verdict.CAUTION,
        f"Not examined: {', '.join(names)}: the budget is spent. tb.check(fit) examines them.",
        "docs/certificate.md, not examined",
        detail=NotExamined(names),
        about=About.BUDGET,
    )


@dataclasses.dataclass(frozen=True)
class Case:
    """What findings judge: q and fresh draws of it, how strictly, and with how much effort.

    Attributes:
        sample: fresh draws of q; a sampler's draws against the Gaussian of their moments.
        key: from which a finding derives its random numbers, each in a stream of its own.
        ran_away: whether the search that led to q did.
    """

    q: AbstractFamily
    sample: FreshDraws
    key: int
    standards: Standards = STANDARDS
    effort: Effort = EFFORT
    ran_away: bool = False


class Stage(enum.StrEnum):
    """When a finding is asked for."""

    JUDGE = "judge"
    """Of every q, before a climb goes on."""
    SEARCH = "search"
    """Once, of the q that is kept: it takes searches of its own."""
    DOUBT = "doubt"
    """Only where another finding does not pass, or the search ran away."""


Find: TypeAlias = Callable[[Case], Finding | None]
"""None where there is nothing to report."""

F = TypeVar("F", bound=Find)

Cost: TypeAlias = Callable[[int, Effort], int]
"""(dimension, effort) -> about how many evaluations (value and gradient) a finding takes."""


def free(dim: int, effort: Effort) -> int:
    """The cost of a finding that looks only at draws that are there."""
    return 0


@dataclasses.dataclass(frozen=True)
class Registered:
    """A finding as the registry knows it; see `register`."""

    name: str
    place: int
    stage: Stage
    of: Literal["weights", "chains"]
    ability: type[AbstractTarget]
    cost: Cost
    find: Find


REGISTRY: list[Registered] = []
"""All findings of a certificate, in their order."""


def register(
    name: str,
    *,
    place: int,
    stage: Stage = Stage.JUDGE,
    of: Literal["weights", "chains"] = "weights",
    ability: type[AbstractTarget] = Density,
    cost: Cost = free,
) -> Callable[[F], F]:
    """Enter a function from a `Case` to a finding into the registry of the certificate.

    Arguments:
        name: of the finding.
        place: in the order of the certificate's findings; smaller is earlier.
        stage: when it is asked for.
        of: "weights" where it judges a q with a density, "chains" where it judges a sampler's
            draws.
        ability: which targets it is for.
        cost: about how many evaluations it takes, so that a budget can leave it out.
    """

    def enter(find: F) -> F:
        entry = Registered(name, place, stage, of, ability, cost, find)
        # Two findings at one place would be ordered by their files, which nobody has declared.
        taken = [e for e in REGISTRY if e.of == of and (e.name == name or e.place == place)]
        if taken:
            raise ValueError(
                f"register: the name {name!r} or the place {place} is taken by"
                f" {taken[0].name!r} (place {taken[0].place})."
            )
        bisect.insort(REGISTRY, entry, key=lambda e: e.place)
        return find

    return enter


__all__ = [
    "NAMED",
    "REGISTRY",
    "SEVERITY",
    "About",
    "Case",
    "Cost",
    "EvidenceDetail",
    "Find",
    "Finding",
    "FindingDetail",
    "MissedMass",
    "NotExamined",
    "Registered",
    "Rival",
    "Stage",
    "Verdict",
    "free",
    "not_examined",
    "register",
]
