"""Numbers and arrays that a user passes to a target, checked and in the shapes that it wants.

Each function takes the argument's name and the target's (`where`) for its messages. What JAX traces
has no values yet: its shape is checked, its values are not.
"""

import jax.core
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float

from .._types import Array
from ..results import TargetError
from .support import ArrayLike

_LOG_2PI = float(np.log(2 * np.pi))  # of Gaussian densities


def is_known(value: object) -> bool:
    """Whether `value` holds numbers, and is not being traced by JAX."""
    return not isinstance(value, jax.core.Tracer)


def holds(condition: Bool[Array, "..."]) -> bool:
    """Whether the condition holds everywhere.

    Of what is being traced nothing is known, and nothing is refused.
    """
    return not is_known(condition) or bool(np.all(condition))


def finite_array(value: ArrayLike, where: str, name: str) -> Array:
    """`value` as a finite float64 array, or a TargetError that says where it is not.

    What JAX traces is left as it is.
    """
    if isinstance(value, jax.core.Tracer):
        return value
    try:
        array = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise TargetError(
            f"{where}: `{name}` must be numbers, got {type(value).__name__}."
        ) from error
    bad = np.argwhere(~np.isfinite(array))
    if len(bad):
        at = ", ".join(map(str, bad[0]))
        raise TargetError(
            f"{where}: `{name}` has {len(bad)} NaN or infinite entries, the first at [{at}]; leave"
            " those points out."
        )
    return array


def vector_of(value: ArrayLike, dim: int, where: str, name: str) -> Float[np.ndarray, "dim"]:
    """A scalar or `[dim]` as `[dim]`, or a TargetError."""
    array = finite_array(value, where, name)
    if array.shape not in ((), (dim,)):
        raise TargetError(
            f"{where}: `{name}` must be a number or have shape [{dim}], got {array.shape}."
        )
    return np.broadcast_to(array, (dim,)).copy()


def root_of(value: ArrayLike, dim: int, where: str, name: str) -> Float[np.ndarray, "dim dim"]:
    """The Cholesky root of a variance or of a covariance `[dim, dim]`, or a TargetError."""
    array = finite_array(value, where, name)
    if array.shape == ():
        if not array > 0:
            raise TargetError(
                f"{where}: `{name}` is a variance and must be positive, got {float(array)}."
            )
        return np.sqrt(array) * np.eye(dim)
    if array.shape != (dim, dim):
        raise TargetError(
            f"{where}: `{name}` must be a positive number or a covariance [{dim}, {dim}], got"
            f" {array.shape}."
        )
    try:
        if not np.allclose(array, array.T):
            raise np.linalg.LinAlgError
        return np.linalg.cholesky(array)
    except np.linalg.LinAlgError:
        raise TargetError(f"{where}: `{name}` must be symmetric and positive definite.") from None


def per_point(value: ArrayLike, n: int, where: str, name: str) -> Float[Array, "rows"]:
    """A number, or one for each of `n` points, as `[n]`, or a TargetError."""
    array = finite_array(value, where, name)
    if array.shape not in ((), (n,)):
        raise TargetError(
            f"{where}: `{name}` must be a number or have one entry per point, [{n}]; got"
            f" {array.shape}."
        )
    return np.broadcast_to(array, (n,)).copy() if is_known(array) else jnp.broadcast_to(array, (n,))


def log_density_of_background(
    log_clutter: ArrayLike | None, vc: ArrayLike, x: Float[Array, "rows dim"], where: str
) -> Float[Array, "rows"]:
    """log Pc at the points x: as given in `log_clutter`, or that of N(0, vc)."""
    n, dim = x.shape
    if log_clutter is None:
        root = root_of(vc, dim, where, "vc")
        white = np.linalg.inv(root) @ x.T
        log_det = float(np.sum(np.log(np.diagonal(root))))
        return -0.5 * (white**2).sum(axis=0) - log_det - 0.5 * dim * _LOG_2PI
    if isinstance(log_clutter, jax.core.Tracer):
        array = log_clutter
    else:
        array = np.asarray(log_clutter, dtype=np.float64)
        if np.any(np.isnan(array) | np.isposinf(array)):
            raise TargetError(
                f"{where}: `log_clutter` has NaN or +inf entries; it is the log of a density (-inf"
                " means none)."
            )
    if array.shape not in ((), (n,)):
        raise TargetError(
            f"{where}: `log_clutter` must be a number or have one entry per point, [{n}]; got"
            f" {array.shape}."
        )
    return np.broadcast_to(array, (n,)).copy() if is_known(array) else jnp.broadcast_to(array, (n,))


__all__ = [
    "finite_array",
    "holds",
    "is_known",
    "log_density_of_background",
    "per_point",
    "root_of",
    "vector_of",
]
