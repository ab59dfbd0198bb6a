"""A target from a plain log density of named values."""

import abc
from collections.abc import Callable, Mapping
from typing import TypeAlias, final

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from .._numerics import x64
from .._types import Array, PyTree, Scalar, Validated
from ..results import TargetError
from .base import AbstractTarget, Density, Joint
from .layout import Layout, value_names
from .support import Support, describe, is_proper_when_flat, known
from .tracing import Traced, explained, host_unless_traced, scalar, trace

ScalarFunction: TypeAlias = Callable[..., Scalar]
"""What a user writes as a log density: from named values, in nats; `tracing.scalar` checks it."""

Derived: TypeAlias = Callable[[PyTree], dict[str, PyTree]]
"""`derived(params)`: further named values."""


class AbstractLaidOut(AbstractTarget):
    """Named values on R^dim through a layout, from which size and names come.

    Attributes:
        layout: names, shapes, supports, and the bijection to R^dim.
    """

    layout: eqx.AbstractVar[Layout]

    @property
    def dim(self) -> int:
        return self.layout.dim

    @property
    def coordinate_names(self) -> tuple[str, ...]:
        return self.layout.coordinate_names

    @property
    def value_names(self) -> tuple[str, ...]:
        """One name per element of what `constrain` returns, in the order of `jax.tree.leaves`."""
        with x64():
            return value_names(
                jax.eval_shape(self.constrain, jax.ShapeDtypeStruct((self.dim,), np.float64))
            )


class AbstractNamedTarget(AbstractLaidOut, Density, Joint):
    """A log density of named, constrained values, on R^dim through a layout.

        log_density(z) = log_joint(constrain(z)) + log|det d constrain / dz|

    Implementing one: the three fields, and `log_joint`.

    Attributes:
        layout: names, shapes, supports, and the bijection to R^dim.
        derived: `derived(params) -> dict` of further values that `constrain` adds, or None.
        returns_float32: whether the user's function rounds below float64, which limits what any fit
            can reach.
    """

    layout: eqx.AbstractVar[Layout]
    derived: eqx.AbstractVar[Derived | None]
    returns_float32: eqx.AbstractVar[bool]

    @host_unless_traced
    def constrain(self, z: Validated[Float[Array, "dim"], "Layout"]) -> PyTree:
        values = self.layout.constrain(z)
        return values if self.derived is None else {**values, **self.derived(values)}

    @host_unless_traced
    def unconstrain(self, values: PyTree) -> Float[Array, "dim"]:
        return self.layout.unconstrain(values)

    @property
    def example_point(self) -> Float[np.ndarray, "dim"] | None:
        """The user's example on the unconstrained scale, for a search that has no better start."""
        values = self.layout.example.values
        return None if values is None else np.asarray(self.unconstrain(values), dtype=np.float64)

    @host_unless_traced
    def log_density(self, z: Validated[Float[Array, "dim"], "Layout"]) -> Float[Array, ""]:
        values, log_det = self.layout.constrain_with_log_det(z)
        return jnp.asarray(self.log_joint(values)) + log_det

    @abc.abstractmethod
    def log_joint(self, values: PyTree) -> Float[Array, ""]: ...


@final
class LogDensity(AbstractNamedTarget):
    """A target that is one function of named values; made by `tb.from_log_density`."""

    layout: Layout
    function: ScalarFunction
    derived: Derived | None
    returns_float32: bool = eqx.field(static=True)

    @host_unless_traced
    def log_joint(self, values: PyTree) -> Float[Array, ""]:
        return scalar(
            self.function(self.layout.restrict(values)), "log_density", may_be_constant=True
        )


def from_log_density(
    log_density: Validated[ScalarFunction, "from_log_density"],
    example: PyTree,
    *,
    support: Validated[Mapping[str, Support] | None, "Layout.from_example"] = None,
    derived: Derived | None = None,
) -> LogDensity:
    """A target from an unnormalised log density of named, constrained values.

    On R^dim the target is log_density(constrain(z)) + log|det d constrain / dz|: write the density
    of the values as they are, without Jacobians. Where the log density is a sum over rows of data,
    `tb.from_rows` also allows minibatches; a NumPyro model goes to `tb.from_numpyro`.

    Arguments:
        log_density: `log_density(params) -> scalar`, log p(params, data) in nats up to a constant,
            with `params` in the structure and shapes of `example`. It runs under JAX in float64;
            arrays that it closes over may be float32.
        example: a pytree, usually a dict, of named values inside their supports; gives names,
            structure and shapes.
        support: name -> support for the values that are not on the whole real line: "positive",
            "unit_interval", "simplex", "ordered", "positive_ordered", "correlation_cholesky",
            "lower_cholesky", "circular", `(low, high)` with None for an open end, or a NumPyro
            constraint. Constraints on vectors and matrices hold for the last axes.
        derived: `derived(params) -> dict` of further named values that draws and summaries show.

    Raises:
        TargetError: when the example, a support or what `log_density` returns cannot be used; the
            message names which and says what to do. Other exceptions that `log_density` raises pass
            through, with a note.
    """
    if not callable(log_density):
        raise TargetError(
            f"`log_density` must be a function of the parameters, got {type(log_density).__name__}."
        )
    layout = Layout.from_example(example, support)
    names = [block.name for block in layout.blocks]
    with x64():
        with explained("log_density", names):
            # On shapes alone, so that a fault is said before anything is compiled
            traced = trace(
                lambda params: scalar(log_density(params), "log_density"), layout.structs()
            )
        check_reads(traced, layout, "log_density")
        check_derived(derived, layout)
    return LogDensity(
        layout=layout, function=log_density, derived=derived, returns_float32=traced.returns_float32
    )


def check_reads(traced: Traced, layout: Layout, argument: str) -> None:
    """Raise a TargetError for a parameter in no term, unless its support is bounded."""
    for read, block in zip(traced.reads, layout.blocks, strict=True):
        if not read and not is_proper_when_flat(block.constraint):
            raise TargetError(
                f"`{argument}` does not depend on {block.name!r} (support"
                f" {describe(block.constraint)}): its posterior would be flat and improper. Give it"
                " a prior, or leave it out of `example`."
            )


def check_derived(derived: Derived | None, layout: Layout) -> None:
    """Raise a TargetError unless `derived(params)` is a dict of arrays under names of their own.

    Call inside `x64()`.
    """
    if derived is None:
        return
    values = layout.structs()
    if not isinstance(values, dict):
        raise TargetError(
            "`derived` needs an `example` that is a dict, to add names to; it is a"
            f" {type(values).__name__}."
        )
    names = [block.name for block in layout.blocks]
    with explained("derived", names):
        out = jax.eval_shape(derived, values)
    if not isinstance(out, dict):
        raise TargetError(
            f"`derived` returned a {type(out).__name__}; it must return a dict from names to"
            " arrays."
        )
    for name in out:
        if name in values:
            raise TargetError(
                f"`derived` returned {name!r}, which is also a parameter. The parameters are"
                f" {known(values, name)}"
            )
