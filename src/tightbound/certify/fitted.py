"""What a certificate, a summary or a report may know of a fit: the approximation and its target."""

import dataclasses
from typing import Protocol, runtime_checkable

from ..families.base import AbstractFamily
from ..results import Result
from ..targets.base import AbstractTarget


@runtime_checkable
class Fitted(Protocol):
    """Anything with a `q` and a `target`: a Fit, a Posterior, a Run, a Pair."""

    @property
    def q(self) -> AbstractFamily:
        """The approximation: a member of a family."""
        ...

    @property
    def target(self) -> AbstractTarget:
        """What it approximates."""
        ...


@runtime_checkable
class Ended(Protocol):
    """A fit that says how its search ended."""

    @property
    def result(self) -> Result:
        """How the run ended."""
        ...


@dataclasses.dataclass(frozen=True)
class Pair:
    """A q and its target, and nothing else: for what is judged before it is a fit.

    `seed`: what summaries derive their keys from, as in a Fit.
    """

    q: AbstractFamily
    target: AbstractTarget
    seed: int = 0


__all__ = ["Ended", "Fitted", "Pair"]
