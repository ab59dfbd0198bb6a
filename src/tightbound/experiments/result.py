"""What an experiment returns: claims, each with its source, what is published and what is found."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TypeAlias, TypedDict, cast

import numpy as np
from jaxtyping import Float

Cell: TypeAlias = float | int | str | bool | None
"""An entry of a table: what a CSV file and JSON can hold."""

Table: TypeAlias = Sequence[Mapping[str, Cell]]
"""One mapping for each row, by the names of the columns."""


class Claim(TypedDict):
    """One number that was compared.

    `source` says where the published number, or the reason for the bound, is to be found;
    `tolerance` is relative, and None where `published` is a bound that `measured` must stay below.
    """

    claim: str
    source: str
    published: float
    measured: float
    tolerance: float | None
    ok: bool


class OptionError(ValueError):
    """An experiment cannot be run as it was asked for; the message says what it takes."""


@dataclasses.dataclass(frozen=True)
class Result:
    """One published table or figure, run again.

    Attributes:
        name: the experiment's name in the registry.
        claims: the numbers that were compared.
        tables: further numbers by name, for reports and pictures.
        note: what a reader must know: data that were missing, what the fast version leaves out.
    """

    name: str
    claims: list[Claim]
    tables: Mapping[str, Table] = dataclasses.field(default_factory=dict)
    note: str = ""

    @property
    def ok(self) -> bool:
        """Whether every claim is met; False where there are none."""
        return bool(self.claims) and all(claim["ok"] for claim in self.claims)


def agrees(claim: str, source: str, published: float, measured: float, tolerance: float) -> Claim:
    """The claim that a number is the published one, to a relative tolerance."""
    # NaN compares as False, an infinite tolerance would not: both are no agreement
    ok = bool(np.isfinite(measured) and abs(measured - published) <= tolerance * abs(published))
    return _claim(claim, source, float(published), float(measured), tolerance, ok)


def below(claim: str, source: str, bound: float, measured: float) -> Claim:
    """The claim that a number is below a published bound."""
    return _claim(claim, source, float(bound), float(measured), None, bool(measured < bound))


def _claim(
    claim: str,
    source: str,
    published: float,
    measured: float,
    tolerance: float | None,
    ok: bool,
) -> Claim:
    return {
        "claim": claim,
        "source": source,
        "published": published,
        "measured": measured,
        "tolerance": tolerance,
        "ok": ok,
    }


def number(row: Mapping[str, Cell], column: str) -> float:
    """An entry that is known to be a number."""
    return float(cast(float, row[column]))


def numbers(table: Table, column: str) -> Float[np.ndarray, "rows"]:
    """A column of numbers."""
    return np.array([number(row, column) for row in table], dtype=float)


__all__ = [
    "Cell",
    "Claim",
    "OptionError",
    "Result",
    "Table",
    "agrees",
    "below",
    "number",
    "numbers",
]
