"""What every ladder hands back: the run that was kept, and its certificate."""

import dataclasses

from ..loop import Run, Trace
from .certificate import Certificate


@dataclasses.dataclass(frozen=True)
class Climbed:
    """Where a climb ended.

    Attributes:
        run: the one that was kept.
        certificate: of its q.
        why: it stopped there, a sentence.
        trace: of all runs, one after the other.
    """

    run: Run
    certificate: Certificate
    why: str
    trace: Trace


__all__ = ["Climbed"]
