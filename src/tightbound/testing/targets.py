"""The battery of targets."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from .._numerics import scoped
from ..targets.base import Joint
from .comparisons import close, seed_of


@scoped
def check_target(
    target: Any,
    key: Any,
    *,
    free: Callable[[Any], Any] | None = None,
    reference: Callable[[Any], Any] | None = None,
    spread: float = 1.0,
) -> None:
    """Finite gradients equal to finite differences, an inverse that inverts, the log-Jacobian that
    autodiff finds.

    `free(values)` picks `dim` numbers that determine the constrained values (a simplex has one more
    than that); by default all values, flattened. `reference(values)` is the log density on the
    native scale, written by hand, up to a constant. Eight points are tried, normal with standard
    deviation `spread`.
    """
    name, is_joint = type(target).__name__, isinstance(target, Joint)
    density = jax.jit(jax.value_and_grad(lambda z: target.log_density(z)))
    many = jax.jit(jax.vmap(lambda z: target.log_density(z)))
    log_jacobian = jax.jit(lambda z: _log_jacobian(target, z, free, name))
    rng = np.random.default_rng(seed_of(key))
    points = spread * rng.standard_normal((8, target.dim))
    differences = []
    for z in map(jnp.asarray, points):
        value, gradient = density(z)
        scalar = value.shape == () and bool(jnp.isfinite(value))
        assert scalar, f"{name}: the log density at {z} is {value}, not a finite scalar."
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
        close(
            target.unconstrain(target.constrain(z)),
            z,
            1e-6,
            f"{name}: `unconstrain` does not invert `constrain`.",
        )
        jacobian = log_jacobian(z)
        if is_joint:
            joint = target.log_joint(target.constrain(z))
            close(
                value - joint,
                jacobian,
                1e-6,
                f"{name}: the log-Jacobian is {value - joint:.6f}, autodiff finds {jacobian:.6f}.",
            )
        if reference is not None:
            differences.append(float(value - jacobian - reference(target.constrain(z))))
    if differences:
        close(
            differences,
            differences[0],
            1e-6,
            f"{name}: the log density differs from the reference by more than a constant.",
        )


def _log_jacobian(target: Any, z: jax.Array, free: Callable | None, name: str) -> jax.Array:
    pick = (lambda values: ravel_pytree(values)[0]) if free is None else free
    jacobian = jax.jacobian(lambda z: jnp.ravel(pick(target.constrain(z))))(z)
    rows, columns = jacobian.shape
    assert rows == columns, (
        f"{name}: {rows} values for {columns} coordinates; pass `free` to pick as many as"
        " coordinates."
    )
    return jnp.linalg.slogdet(jacobian)[1]
