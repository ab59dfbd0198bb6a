"""Targets whose values have names: what `from_log_density` and `from_rows` share."""

import abc
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from .._numerics import x64
from .._types import Array, PyTree
from ..results import TargetError
from .base import Density, Joint
from .layout import Layout, value_names
from .support import describe, is_proper_when_flat, known
from .tracing import Traced, explained, host_unless_traced


class AbstractNamedTarget(Density, Joint):
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
    derived: eqx.AbstractVar[Callable[[PyTree], dict[str, Any]] | None]
    returns_float32: eqx.AbstractVar[bool]

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

    @host_unless_traced
    def constrain(self, z: Array) -> PyTree:
        values = self.layout.constrain(z)
        return values if self.derived is None else {**values, **self.derived(values)}

    @host_unless_traced
    def unconstrain(self, values: PyTree) -> Array:
        return self.layout.unconstrain(values)

    @property
    def example_point(self) -> np.ndarray | None:
        """The user's example on the unconstrained scale, `[dim]`.

        Where a search starts that finds no other place to.
        """
        values = self.layout.example.values
        return None if values is None else np.asarray(self.unconstrain(values), dtype=np.float64)

    @host_unless_traced
    def log_density(self, z: Array) -> Array:
        values, log_det = self.layout.constrain_with_log_det(z)
        return jnp.asarray(self.log_joint(values)) + log_det

    @abc.abstractmethod
    def log_joint(self, values: PyTree) -> Array: ...


def check_reads(traced: Traced, layout: Layout, argument: str) -> None:
    """Raise a TargetError for a parameter that no term depends on and whose flat density has no
    finite integral.
    """
    for read, block in zip(traced.reads, layout.blocks, strict=True):
        if not read and not is_proper_when_flat(block.constraint):
            raise TargetError(
                f"`{argument}` does not depend on {block.name!r} (support"
                f" {describe(block.constraint)}): its posterior would be flat and improper. Give it"
                " a prior, or leave it out of `example`."
            )


def check_derived(derived: Callable[[PyTree], Any] | None, layout: Layout) -> None:
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
