"""The battery of targets."""

from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Float

from .._numerics import scoped
from .._types import Array, Key, PyTree, Scalar
from ..targets.base import Density, Joint
from .comparisons import close, seed_of

Free: TypeAlias = Callable[[PyTree], PyTree]
"""`free(values)`: numbers that determine the constrained values, as many as coordinates."""

# Points that are tried: a formula that is wrong is wrong at most points, and each takes some
# milliseconds.
_POINTS = 8


@scoped
def check_target(
    target: Density,
    key: Key,
    *,
    free: Free | None = None,
    reference: Callable[[PyTree], Scalar] | None = None,
    spread: float = 1.0,
) -> None:
    """A log density, its gradient and its maps to the named values, each against another way.

    Finite gradients equal to finite differences, an inverse that inverts, and the log-Jacobian that
    autodiff finds, at eight points.

    Arguments:
        target: with the ability `density`; where it has `joint` too, that is compared.
        key: of the points.
        free: picks `dim` numbers that determine the constrained values (a simplex has one more than
            that); by default all values, flattened.
        reference: the log density on the native scale, written by hand, up to a constant.
        spread: standard deviation of the points, which are normal.
    """
    name = type(target).__name__
    density = jax.jit(jax.value_and_grad(lambda z: target.log_density(z)))
    many = jax.jit(jax.vmap(lambda z: target.log_density(z)))
    log_jacobian = jax.jit(lambda z: _log_jacobian(target, z, free, name))
    rng = np.random.default_rng(seed_of(key))
    differences = []
    for z in map(jnp.asarray, spread * rng.standard_normal((_POINTS, target.dim))):
        value, gradient = density(z)
        scalar = value.shape == () and bool(jnp.isfinite(value))
        assert scalar, f"{name}: the log density at {z} is {value}, not a finite scalar."
        _check_gradient(many, z, gradient, name)
        values, jacobian = target.constrain(z), log_jacobian(z)
        close(
            target.unconstrain(values),
            z,
            1e-6,
            f"{name}: `unconstrain` does not invert `constrain`.",
        )
        if isinstance(target, Joint):
            found = value - target.log_joint(values)
            close(
                found,
                jacobian,
                1e-6,
                f"{name}: the log-Jacobian is {found:.6f}, autodiff finds {jacobian:.6f}.",
            )
        if reference is not None:
            differences.append(float(value - jacobian - reference(values)))
    if differences:
        close(
            differences,
            differences[0],
            1e-6,
            f"{name}: the log density differs from the reference by more than a constant.",
        )


def _check_gradient(
    many: Callable[[jax.Array], jax.Array],
    z: Float[jax.Array, "dim"],
    gradient: Float[jax.Array, "dim"],
    name: str,
) -> None:
    """Against central differences of `many`, the log density of a batch of points."""
    # near the cube root of the rounding error of a double, where rounding and curvature balance
    step = 1e-5 * (1 + np.abs(np.asarray(z)))
    ends = np.asarray(
        many(jnp.concatenate([z[None] + np.diag(step), z[None] - np.diag(step)]))
    ).reshape(2, -1)
    slope = (ends[0] - ends[1]) / (2 * step)
    close(
        gradient,
        slope,
        1e-5 * (1 + float(np.abs(slope).max())),
        f"{name}: the gradient is not the difference quotient.",
    )


def _log_jacobian(
    target: Density, z: Float[Array, "dim"], free: Free | None, name: str
) -> Float[jax.Array, ""]:
    """log|det of the derivative of the free values in z|, by automatic differentiation."""
    pick = (lambda values: ravel_pytree(values)[0]) if free is None else free
    jacobian = jax.jacobian(lambda z: jnp.ravel(pick(target.constrain(z))))(z)
    rows, columns = jacobian.shape
    assert rows == columns, (
        f"{name}: {rows} values for {columns} coordinates; pass `free` to pick as many as"
        " coordinates."
    )
    return jnp.linalg.slogdet(jacobian)[1]
