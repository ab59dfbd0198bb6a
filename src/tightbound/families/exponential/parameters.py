"""What the constructors of exponential families do with their arguments: broadcast and check."""

import equinox as eqx
import numpy as np
import numpy.typing as npt

from ..._numerics import namespace
from ..._types import Array, Validated
from ..scales import as_floating


def plated(
    name: str, **fields: Validated[tuple[npt.ArrayLike, int], "the first, by this function"]
) -> Validated[list[Array], "placeholders pass"]:
    """Parameters (value, rank) as floating arrays with a common plate.

    The plate is the axes before the last `rank`, broadcast to one shape.

    Raises:
        ValueError: when the plates do not fit together, naming the fields.
    """
    arrays = {field: as_floating(value) for field, (value, _) in fields.items()}
    if not all(eqx.is_array_like(array) and hasattr(array, "shape") for array in arrays.values()):
        # A tree of something else, on its way through a transformation
        return list(arrays.values())
    ranks = {field: rank for field, (_, rank) in fields.items()}
    for field, array in arrays.items():
        if array.ndim < ranks[field]:
            raise ValueError(
                f"{name}: `{field}` must have at least {ranks[field]} axes, got the shape"
                f" {array.shape}."
            )
    leads = {field: array.shape[: array.ndim - ranks[field]] for field, array in arrays.items()}
    try:
        plate = np.broadcast_shapes(*leads.values())
    except ValueError:
        shown = ", ".join(f"`{field}` {lead}" for field, lead in leads.items())
        raise ValueError(
            f"{name}: the leading axes (the plate) do not fit together: {shown}."
        ) from None
    shapes = {f: plate + array.shape[array.ndim - ranks[f] :] for f, array in arrays.items()}
    # What has the shape already stays what it is: a broadcast is a view that cannot be written to.
    return [
        array if leads[f] == plate else namespace(array).broadcast_to(array, shapes[f])
        for f, array in arrays.items()
    ]


def check_positive(name: str, **fields: Validated[Array, "numbers that are known"]) -> None:
    """Raise a ValueError that names the first field with a number that is not positive and finite.

    Known numbers only.
    """
    for field, value in fields.items():
        known = isinstance(value, (np.ndarray, np.generic))
        if known and not np.all((np.asarray(value, np.float64) > 0) & np.isfinite(value)):
            raise ValueError(
                f"{name}: `{field}` must be positive and finite, got"
                f" {np.asarray(value).reshape(-1)[:5]}."
            )


def check_same(name: str, **sizes: int) -> None:
    """Raise a ValueError unless all sizes are equal."""
    if len(set(sizes.values())) > 1:
        raise ValueError(
            f"{name}: the fields disagree in size:"
            f" {', '.join(f'`{k}` {v}' for k, v in sizes.items())}."
        )


__all__ = ["check_positive", "check_same", "plated"]
