"""What every ladder hands back: the run that was kept, and its certificate."""

import dataclasses

from ..loop import Run, Trace
from .certificate import Certificate


@dataclasses.dataclass(frozen=True)
class Climbed:
    """Where a climb ended.

    Attributes:
        run: the one that was kept.
        certificate: of its q; None where the user ended the climb before it was made.
        why: it stopped there, a sentence.
        trace: of all runs, one after the other.
    """

    run: Run
    certificate: Certificate | None
    why: str
    trace: Trace


__all__ = ["Climbed"]
