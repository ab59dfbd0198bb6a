"""A conjugate target from the user's own expected log joint."""

from collections.abc import Callable
from typing import TypeAlias, cast, final

import jax
import numpy as np
from jaxtyping import Float, Shaped

from ..._numerics import scoped, to_device
from ..._types import Array, Key, PyTree, Scalar, Validated
from ...families.exponential.product import Product
from ...results import TargetError
from ..layout import Layout
from ..log_density import ScalarFunction
from ..support import ArrayLike
from ..tracing import explained, scalar
from .base import (
    AbstractCollapsedTarget,
    AbstractConjugateTarget,
    check_rows,
    hidden_factors,
    layout_of,
)

Start: TypeAlias = Callable[[Key], Product]
"""`start(key)`: where coordinate ascent begins."""


class AbstractFromFunction(AbstractConjugateTarget):
    """A model by its expected log joint; made by `tb.from_expected_log_joint`."""

    function: ScalarFunction
    family: Product
    layout: Layout
    data: PyTree
    start_function: Start | None

    @property
    def data_rows(self) -> PyTree:
        return self.data

    def expected_log_joint(
        self, moments: PyTree, rows: PyTree = None, scale: Scalar = 1.0
    ) -> Float[Array, ""]:
        return _called(self.function, moments, self.data if rows is None else rows, scale)

    def start(self, key: Key) -> Product:
        return self.family if self.start_function is None else self.start_function(key)


@final
class ConjugateModel(AbstractFromFunction):
    """A model by its expected log joint, with two or more hidden factors.

    Made by `tb.from_expected_log_joint`.
    """


@final
class CollapsedModel(AbstractFromFunction, AbstractCollapsedTarget):
    """A model by its expected log joint with at most one hidden factor, which is summed out.

    Made by `tb.from_expected_log_joint`.
    """


@scoped
def from_expected_log_joint(
    expected_log_joint: Validated[ScalarFunction, "tracing.scalar"],
    q: Validated[Product, "from_expected_log_joint"],
    data: PyTree = None,
    *,
    start: Start | None = None,
) -> ConjugateModel | CollapsedModel:
    """A target from ONE function: the expected log joint of a model in the factors' moments.

    Coordinate ascent, SVI and natural gradients get all their updates from it by automatic
    differentiation. `moments` holds for each factor of `q` a named tuple, `moments["tau"].log` and
    `moments["tau"].value` for a Gamma called tau; write log p(data, values), with each statistic
    replaced by its moment.

    Arguments:
        expected_log_joint: without data rows `f(moments) -> scalar`, with them `f(moments, rows,
            scale) -> scalar`, in nats, where everything that belongs to a row (also the prior of
            its local factors) is counted `scale` times.
        q: a tb.families.Product with all unknowns as factors; it is also the start, unless `start`
            is given.
        data: a pytree of arrays with a leading axis of N rows, which minibatches are taken from;
            None where the data are inside the function (a closure).
        start: `start(key) -> Product`, where symmetric factors must be told apart by chance (a
            mixture's components).

    Raises:
        TargetError: the function fails, returns no scalar, or the data do not have the local
            factors' N rows.
    """
    if not isinstance(q, Product):
        raise TargetError(
            f"from_expected_log_joint: `q` must be a tb.families.Product, got {type(q).__name__}."
        )
    leaves = jax.tree.leaves(data)
    count = (
        check_rows(
            "from_expected_log_joint", **{f"data[{i}]": leaf for i, leaf in enumerate(leaves)}
        )
        if leaves
        else None
    )
    if q.local and count != q.num_rows:
        raise TargetError(
            f"from_expected_log_joint: the local factors {', '.join(q.local)} have {q.num_rows}"
            f" members, but `data` has {'no' if count is None else count} rows; there must be one"
            " member for each row."
        )
    data = jax.tree.map(_array, data)
    # Called once on shapes alone, so that a fault of the function is said here and not in a fit
    with explained("expected_log_joint", list(q.factors)):
        moments = {name: to_device(factor.mean_parameters) for name, factor in q.factors.items()}
        jax.eval_shape(
            lambda m: scalar(_called(expected_log_joint, m, data, 1.0), "expected_log_joint"),
            moments,
        )
    kind = CollapsedModel if len(hidden_factors(q)) <= 1 else ConjugateModel
    return kind(
        function=expected_log_joint, family=q, layout=layout_of(q), data=data, start_function=start
    )


def _called(
    function: ScalarFunction, moments: PyTree, rows: PyTree, scale: Scalar
) -> Validated[Float[jax.Array, ""], "tracing.scalar"]:
    out = function(moments) if rows is None else function(moments, rows, scale)
    return cast(jax.Array, out)  # `scalar` has seen that it is one


def _array(leaf: ArrayLike) -> Shaped[np.ndarray, "..."]:
    array = np.asarray(leaf)
    return array.astype(np.float64) if np.issubdtype(array.dtype, np.floating) else array
