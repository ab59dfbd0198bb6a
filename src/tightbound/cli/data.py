"""Data files of the command line: .json, .csv and .npz to named numbers and arrays."""

import contextlib
import csv
import io
import json
import math
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import UsageError

if TYPE_CHECKING:
    import numpy  # a fifth of a second, which `--help` does without


def read(path: Path) -> dict[str, object]:
    """The numbers and arrays in a data file, by name.

    Raises:
        UsageError: the file cannot be read, is of another kind, or does not hold names with
            numbers.
    """
    readers = {".json": _read_json, ".csv": _read_csv, ".npz": _read_npz}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise UsageError(
            f"--data {path}: {path.suffix!r} is no kind of file that can be read; pass"
            f" {', '.join(readers)}."
        )
    try:
        return reader(path.read_bytes())
    except OSError as error:
        raise UsageError(f"--data {path}: the file cannot be read: {error.strerror}.") from None
    except (ValueError, EOFError) as error:
        raise UsageError(f"--data {path}: {error}") from None


def _read_json(content: bytes) -> dict[str, object]:
    found = json.loads(content)
    if not isinstance(found, dict):
        raise ValueError(
            'the JSON must be an object with names, such as {"x": [1, 2], "y": [3, 4]}.'
        )
    return {name: _array(value, name) for name, value in found.items()}


def _array(value: object, name: str) -> object:
    """Lists as arrays, also within objects.

    A single number stays a Python number, so that it can be the size of a plate.
    """
    import numpy as np

    if isinstance(value, dict):
        return {inner: _array(part, f"{name}.{inner}") for inner, part in value.items()}
    if not isinstance(value, list):
        return value
    try:
        array = np.asarray(value)
    except ValueError:
        raise ValueError(f"{name!r} is ragged: its rows have different lengths.") from None
    if array.dtype == object:
        raise ValueError(
            f"{name!r} holds null, or a mixture of kinds; drop or impute what is missing."
        )
    return array


def _read_csv(content: bytes) -> dict[str, object]:
    # utf-8-sig: spreadsheets put a byte order mark before the first name
    rows = [row for row in csv.reader(io.StringIO(content.decode("utf-8-sig"), newline="")) if row]
    if len(rows) < 2:
        raise ValueError("the CSV needs a line of names and at least one line of data.")
    names = [name.strip() for name in rows[0]]
    if len(set(names)) < len(names) or "" in names:
        raise ValueError(
            f"the first line must name each column once; it is {', '.join(map(repr, names))}."
        )
    for count, row in enumerate(rows[1:], 2):
        if len(row) != len(names):
            raise ValueError(f"row {count} has {len(row)} cells, but there are {len(names)} names.")
    return {name: _column([row[i].strip() for row in rows[1:]]) for i, name in enumerate(names)}


def _column(cells: list[str]) -> "numpy.ndarray":
    """Integers where all cells are, else floats (an empty cell is NaN), else text."""
    import numpy as np

    for convert in (int, lambda cell: float(cell) if cell not in ("", "NA") else math.nan):
        with contextlib.suppress(ValueError, OverflowError):
            return np.array([convert(cell) for cell in cells])
    return np.array(cells)


def _read_npz(content: bytes) -> dict[str, object]:
    import numpy as np

    if not zipfile.is_zipfile(io.BytesIO(content)):
        raise ValueError(
            "this is not an .npz file, or it is damaged; write it with numpy.savez(path, x=x, y=y)."
        )
    found = {}
    # No pickles: a data file must not be able to run code.
    with np.load(io.BytesIO(content), allow_pickle=False) as archive:
        for name in archive:
            try:
                found[name] = archive[name].item() if archive[name].ndim == 0 else archive[name]
            except ValueError:
                raise ValueError(
                    f"{name!r} holds Python objects, which are not loaded; save numbers."
                ) from None
    return found


__all__ = ["read"]
