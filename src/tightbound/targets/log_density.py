"""A target from a plain log density of named values."""

from collections.abc import Callable, Mapping
from typing import Any, final

import equinox as eqx

from .._numerics import x64
from .._types import Array, PyTree
from ..results import TargetError
from .layout import Layout
from .named import AbstractNamedTarget, check_derived, check_reads
from .tracing import explained, host_unless_traced, scalar, trace


@final
class LogDensity(AbstractNamedTarget):
    """A target that is one function of named values; made by `tb.from_log_density`."""

    layout: Layout
    function: Callable[[PyTree], Any]
    derived: Callable[[PyTree], dict[str, Any]] | None
    returns_float32: bool = eqx.field(static=True)

    @host_unless_traced
    def log_joint(self, values: PyTree) -> Array:
        return scalar(
            self.function(self.layout.restrict(values)), "log_density", may_be_constant=True
        )


def from_log_density(
    log_density: Callable[[PyTree], Any],
    example: PyTree,
    *,
    support: Mapping[str, Any] | None = None,
    derived: Callable[[PyTree], dict[str, Any]] | None = None,
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
            traced = trace(
                lambda params: scalar(log_density(params), "log_density"), layout.structs()
            )
        check_reads(traced, layout, "log_density")
        check_derived(derived, layout)
    return LogDensity(
        layout=layout, function=log_density, derived=derived, returns_float32=traced.returns_float32
    )
