"""What an experiment returns.

Claims with their source, the published value, the measured one, and whether they agree.
"""

import dataclasses
from typing import Any

import numpy as np


class OptionError(ValueError):
    """An experiment cannot be run as it was asked for; the message says what it takes."""


@dataclasses.dataclass(frozen=True)
class Result:
    """One published table or figure, run again.

    Attributes:
        name: the experiment's name in the registry.
        claims: one dict per number compared, with the keys claim, source, published, measured,
            tolerance (relative, except for bounds, where it is None) and ok.
        tables: further numbers by name, for reports and pictures: name -> list of dicts.
        note: what a reader must know: data that were missing, what the fast version leaves out.
    """

    name: str
    claims: list[dict[str, Any]]
    tables: dict[str, list[dict[str, Any]]] = dataclasses.field(default_factory=dict)
    note: str = ""

    @property
    def ok(self) -> bool:
        """Whether every claim is met; False where there are none."""
        return bool(self.claims) and all(claim["ok"] for claim in self.claims)


def agrees(
    claim: str, source: str, published: float, measured: float, tolerance: float
) -> dict[str, Any]:
    """The claim that a number is the published one, to a relative tolerance."""
    ok = bool(np.isfinite(measured) and abs(measured - published) <= tolerance * abs(published))
    return _claim(claim, source, float(published), float(measured), tolerance, ok)


def below(claim: str, source: str, bound: float, measured: float) -> dict[str, Any]:
    """The claim that a number is below a published bound."""
    return _claim(claim, source, float(bound), float(measured), None, bool(measured < bound))


def _claim(
    claim: str, source: str, published: float, measured: float, tolerance: Any, ok: bool
) -> dict[str, Any]:
    return {
        "claim": claim, "source": source, "published": published, "measured": measured, "tolerance": tolerance, "ok": ok,
    }  # fmt: skip


__all__ = ["OptionError", "Result", "agrees", "below"]
