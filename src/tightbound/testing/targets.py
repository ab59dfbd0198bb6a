"""The battery of targets."""

from collections.abc import Callable, Mapping
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Float

from .._numerics import scoped
from .._types import Array, Key, PyTree, Scalar
from ..targets.base import AbstractTarget, Density, Joint
from .comparisons import close, seed_of

Free: TypeAlias = Callable[[PyTree], PyTree]
"""`free(values)`: numbers that determine the constrained values, as many as coordinates."""

# Points that are tried: a formula that is wrong is wrong at most points, and each takes some
# milliseconds.
_POINTS = 8


@scoped
def check_target(
    target: AbstractTarget,
    key: Key,
    *,
    dim: int | None = None,
    hidden: Mapping[str, PyTree] | None = None,
    free: Free | None = None,
    reference: Callable[[PyTree], Scalar] | None = None,
    spread: float = 1.0,
) -> None:
    """A log density, its gradient and its maps to the named values, each against another way.

    Finite gradients equal to finite differences, an inverse that inverts, and the log-Jacobian that
    autodiff finds, at eight points.

    Arguments:
        target: with the ability `density`; where it has `joint` too, that is compared. Or with
            `joint` alone, whose log joint is then looked at, with the log-Jacobian added.
        key: of the points.
        dim: of a target without the ability `density`.
        hidden: values that belong to the log joint and are not shown by `constrain`.
        free: picks `dim` numbers that determine the constrained values (a simplex has one more than
            that); by default all values, flattened.
        reference: the log density on the native scale, written by hand, up to a constant.
        spread: standard deviation of the points, which are normal.
    """
    name = type(target).__name__
    log_density, size = _density_of(target, dim, hidden, free, name)
    density = jax.jit(jax.value_and_grad(log_density))
    many = jax.jit(jax.vmap(log_density))
    # One program: value by value a model of many parts compiles for seconds.
    seen = jax.jit(lambda z: _seen(target, z, hidden, free, name))
    rng = np.random.default_rng(seed_of(key))
    differences = []
    for z in map(jnp.asarray, spread * rng.standard_normal((_POINTS, size))):
        value, gradient = density(z)
        scalar = value.shape == () and bool(jnp.isfinite(value))
        assert scalar, f"{name}: the log density at {z} is {value}, not a finite scalar."
        _check_gradient(many, z, gradient, name)
        values, back, joint, jacobian = seen(z)
        close(back, z, 1e-6, f"{name}: `unconstrain` does not invert `constrain`.")
        if joint is not None:
            found = value - joint
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


def _density_of(
    target: AbstractTarget,
    dim: int | None,
    hidden: Mapping[str, PyTree] | None,
    free: Free | None,
    name: str,
) -> tuple[Callable[[Float[Array, "dim"]], Float[Array, ""]], int]:
    """The log density in coordinates, and how many of them there are."""
    if isinstance(target, Density) and hidden is None:
        return lambda z: target.log_density(z), target.dim
    assert isinstance(target, Joint), f"{name} has no density and no joint: there is none to check."
    assert dim is not None, f"{name} has no density: pass `dim`."
    more = {} if hidden is None else hidden

    def log_density(z: Float[Array, "dim"]) -> Float[Array, ""]:
        log_joint = target.log_joint({**target.constrain(z), **more})
        return log_joint + _log_jacobian(target, z, free, name)

    return log_density, dim


def _seen(
    target: AbstractTarget,
    z: Float[Array, "dim"],
    hidden: Mapping[str, PyTree] | None,
    free: Free | None,
    name: str,
) -> tuple[PyTree, Float[Array, "dim"], Float[Array, ""] | None, Float[Array, ""]]:
    """All values at z, the way back, the log joint where the target has one, the log-Jacobian."""
    values = target.constrain(z)
    back, jacobian = target.unconstrain(values), _log_jacobian(target, z, free, name)
    if hidden is not None:
        values = {**values, **hidden}
    joint = target.log_joint(values) if isinstance(target, Joint) else None
    return values, back, joint, jacobian


def _check_gradient(
    many: Callable[[jax.Array], jax.Array],
    z: Float[jax.Array, "dim"],
    gradient: Float[jax.Array, "dim"],
    name: str,
) -> None:
    """Against central differences of `many`, the log density of a batch of points."""
    # Near the cube root of the rounding error of a double, where rounding and curvature balance
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
    target: AbstractTarget, z: Float[Array, "dim"], free: Free | None, name: str
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
