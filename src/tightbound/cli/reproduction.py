"""What the command line shows of a reproduced table or figure, and writes to --out."""

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol, TypeAlias, runtime_checkable

from ..results import MissingExtraError
from .output import write_all

Rows: TypeAlias = Sequence[Mapping[str, object]]
"""A table: one mapping for each row, by the names of the columns."""


@runtime_checkable
class Reproduced(Protocol):
    """What is shown of a result of `tightbound.experiments`, which stands in a layer above."""

    @property
    def name(self) -> str: ...

    @property
    def claims(self) -> Rows: ...

    @property
    def tables(self) -> Mapping[str, Rows]: ...

    @property
    def note(self) -> str: ...

    @property
    def ok(self) -> bool: ...


def claims_in_words(result: Reproduced) -> str:
    """One line per claim, and what the reader must know."""
    lines = []
    for claim in result.claims:
        met = "met    " if claim["ok"] else "NOT MET"
        values = f"published {claim['published']}, measured {claim['measured']}"
        lines.append(f"{met}  {claim['claim']}: {values} ({claim['source']})")
    return "\n".join([*lines, *([result.note] if result.note else [])])


def write_result(
    out: Path,
    result: Reproduced,
    shown: object,
    pictures: Callable[[Reproduced], dict[str, bytes]],
) -> None:
    """All files of --out: NAME.json with the claims, one .csv per table, one .png per picture."""
    from ..storage import write_whole

    def writer(content: bytes) -> Callable[[Path], object]:
        return lambda path: write_whole(path, content, "result")

    writers = {f"{result.name}.json": writer(json.dumps(shown, indent=1).encode())}
    for name, rows in result.tables.items():
        writers[_file(result.name, name, "csv")] = writer(_csv(rows))
    # Without matplotlib the numbers are written all the same; what is missing is said at the end.
    try:
        for name, png in pictures(result).items():
            writers[_file(result.name, name, "png")] = writer(png)
    except MissingExtraError as error:
        writers["the picture"] = _raiser(error)
    write_all(out, writers)


def _raiser(error: Exception) -> Callable[[Path], object]:
    def raising(path: Path) -> None:
        raise error

    return raising


def _file(experiment: str, name: str, ending: str) -> str:
    return f"{experiment}-{name.replace(' ', '-')}.{ending}"


def _csv(rows: Rows) -> bytes:
    """The rows of a table; a column that some rows lack is empty there."""
    # Rows of one table may have different columns: those of a method that has no such number.
    columns = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO(newline="")
    table = csv.DictWriter(text, columns, restval="")
    table.writeheader()
    table.writerows(rows)
    return text.getvalue().encode()


__all__ = ["Reproduced", "claims_in_words", "write_result"]
