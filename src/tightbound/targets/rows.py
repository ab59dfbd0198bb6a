"""A target from independent rows of data: a prior, and a likelihood of each row."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import TypeAlias, final

import equinox as eqx
import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int, Shaped

from .._numerics import x64
from .._types import Array, PyTree, Validated
from ..results import TargetError
from .base import Observed, Rows, Sequential
from .layout import Layout, named_leaves
from .log_density import (
    AbstractNamedTarget,
    Derived,
    ScalarFunction,
    check_derived,
    check_reads,
)
from .sites import log_normal
from .support import Support
from .tracing import Traced, explained, host_unless_traced, scalar, trace, vector

RowFunction: TypeAlias = Callable[[PyTree, PyTree], Array]
"""`log_likelihood(params, rows)`: one number for each row, nats; `tracing.vector` checks it."""

_CHUNK = 64  # draws whose likelihoods are computed together: bounds the memory


@final
class IndependentRows(AbstractNamedTarget, Rows, Observed, Sequential):
    """log p(z) = log_prior(values) + log|J| + scale * sum over rows of log_likelihood(values, row).

    Made by `tb.from_rows`.

    Attributes:
        data: a pytree of arrays whose leading axis is the rows. They are traced under jit, so that
            other data of the same shapes compile nothing.
        scale: N / B in a target of B of N rows, 1 in one of all rows.
    """

    layout: Layout
    prior_function: ScalarFunction
    likelihood_function: RowFunction
    derived: Derived | None
    data: PyTree
    returns_float32: bool = eqx.field(static=True)
    scale: float = eqx.field(static=True, default=1.0)

    @property
    def num_rows(self) -> int:
        return len(jax.tree.leaves(self.data)[0])

    @host_unless_traced
    def log_joint(self, values: PyTree) -> Float[Array, ""]:
        values = self.layout.restrict(values)
        prior = scalar(self.prior_function(values), "log_prior", may_be_constant=True)
        return prior + self.scale * jnp.sum(self._of_rows(values, self.data))

    @host_unless_traced
    def log_prior(self, z: Float[Array, "dim"]) -> Float[Array, ""]:
        values, log_det = self.layout.constrain_with_log_det(z)
        return scalar(self.prior_function(values), "log_prior", may_be_constant=True) + log_det

    @host_unless_traced
    def log_likelihood(self, z: Float[Array, "dim"], rows: PyTree) -> Float[Array, "rows"]:
        return self._of_rows(self.layout.constrain(z), rows)

    @host_unless_traced
    def rows_at(self, index: Int[Array, "rows"]) -> PyTree:
        index = jnp.asarray(index)
        return jax.tree.map(lambda leaf: jnp.asarray(leaf)[index], self.data)

    @host_unless_traced
    def take(self, index: Int[Array, "rows"]) -> "IndependentRows":
        return dataclasses.replace(
            self, data=self.rows_at(index), scale=self.scale * self.num_rows / np.size(index)
        )

    def after(
        self, mean: Float[np.ndarray, "dim"], cov: Float[np.ndarray, "dim dim"], new_data: PyTree
    ) -> "UpdatedRows":
        """The new rows under a Gaussian prior on the unconstrained scale.

        `log_prior` is not used again.
        """
        rows = as_rows(new_data)
        old = {name: np.shape(leaf)[1:] for name, leaf in named_leaves(self.data).items()}
        new = {name: np.shape(leaf)[1:] for name, leaf in named_leaves(rows).items()}
        if old != new:
            raise TargetError(
                f"update: new rows have names and shapes {new}, those of the model {old}; they must"
                " agree."
            )
        return UpdatedRows(
            dataclasses.replace(self, data=rows, scale=1.0), mean, np.linalg.cholesky(cov)
        )

    def observed(self) -> dict[str, np.ndarray]:
        return {name: np.asarray(leaf) for name, leaf in named_leaves(self.data).items()}

    def pointwise_log_likelihood(self, values: PyTree) -> dict[str, np.ndarray]:
        with x64():
            return {"rows": np.asarray(_each_draw(self, jax.tree.map(jnp.asarray, values)))}

    def _of_rows(self, values: PyTree, rows: PyTree) -> Float[jax.Array, "rows"]:
        num_rows = len(jax.tree.leaves(rows)[0])
        return vector(self.likelihood_function(values, rows), "log_likelihood", num_rows)


@final
class UpdatedRows(Rows, Sequential):
    """log p(z) = log N(z; mean, root root') + sum over the new rows of log_likelihood(z, row).

    The sum times `scale` in a target of some of the rows. The prior is on the unconstrained scale,
    where yesterday's q lives. Make it with `tb.update(fit, new_data)`, not by hand.

    Attributes:
        rows: the target that says what a row's likelihood is, holding the new rows; its own prior
            is not used.
        mean: of the Gaussian prior.
        root: of its covariance.
    """

    rows: IndependentRows
    mean: Float[Array, "dim"]
    root: Float[Array, "dim dim"]

    @property
    def dim(self) -> int:
        return self.rows.dim

    @property
    def num_rows(self) -> int:
        return self.rows.num_rows

    @property
    def coordinate_names(self) -> tuple[str, ...]:
        return self.rows.coordinate_names

    @property
    def value_names(self) -> tuple[str, ...]:
        return self.rows.value_names

    def constrain(self, z: Float[Array, "dim"]) -> PyTree:
        return self.rows.constrain(z)

    def unconstrain(self, values: PyTree) -> Float[Array, "dim"]:
        return self.rows.unconstrain(values)

    @host_unless_traced
    def log_density(self, z: Float[Array, "dim"]) -> Float[Array, ""]:
        likelihood = self.rows.scale * jnp.sum(
            self.rows.log_likelihood(z, jax.tree.map(jnp.asarray, self.rows.data))
        )
        return self.log_prior(z) + likelihood

    @host_unless_traced
    def log_prior(self, z: Float[Array, "dim"]) -> Float[Array, ""]:
        return log_normal(z, self.mean, self.root)

    def log_likelihood(self, z: Float[Array, "dim"], rows: PyTree) -> Float[Array, "rows"]:
        return self.rows.log_likelihood(z, rows)

    def rows_at(self, index: Int[Array, "rows"]) -> PyTree:
        return self.rows.rows_at(index)

    def take(self, index: Int[Array, "rows"]) -> "UpdatedRows":
        return UpdatedRows(self.rows.take(index), self.mean, self.root)

    def after(
        self, mean: Float[np.ndarray, "dim"], cov: Float[np.ndarray, "dim dim"], new_data: PyTree
    ) -> "UpdatedRows":
        return self.rows.after(mean, cov, new_data)


@eqx.filter_jit
def _each_draw(target: IndependentRows, values: PyTree) -> Float[jax.Array, "n rows"]:
    """Log likelihood of every row at every draw."""

    def one(draw):
        return target._of_rows(target.layout.restrict(draw), target.data)

    return jax.lax.map(one, values, batch_size=_CHUNK)


def from_rows(
    log_prior: Validated[ScalarFunction, "from_rows"],
    log_likelihood: Validated[RowFunction, "from_rows"],
    data: PyTree,
    example: PyTree,
    *,
    support: Validated[Mapping[str, Support] | None, "Layout.from_example"] = None,
    derived: Derived | None = None,
) -> IndependentRows:
    """A target whose log density is a prior plus a sum over independent rows of data.

    Fits and certificates use all rows; estimators may also take minibatches. Use
    `tb.from_log_density` where the data are not independent given the parameters, or where a row
    has latent values of its own.

    Arguments:
        log_prior: `log_prior(params) -> scalar`, nats; a constant such as 0.0 is a flat prior.
        log_likelihood: `log_likelihood(params, rows) -> [B]`, the log likelihood of each of any
            number B of rows, nats; `rows` has the structure of `data` with B in place of N.
        data: a pytree of arrays (NumPy, JAX, pandas, or lists of numbers) with the same number N of
            rows along their leading axes. Floats become float64; integers and booleans stay as they
            are. What has no row axis, such as a constant, is closed over instead.
        example: named values inside their supports; see `tb.from_log_density`.
        support: name -> support, as in `tb.from_log_density`.
        derived: `derived(params) -> dict` of further named values that draws and summaries show.

    Raises:
        TargetError: when the data are ragged, empty, not numbers or contain NaN; when a function
            returns the wrong shape or type; and as in `tb.from_log_density`.
    """
    for name, function in (("log_prior", log_prior), ("log_likelihood", log_likelihood)):
        if not callable(function):
            raise TargetError(f"`{name}` must be a function, got {type(function).__name__}.")
    layout = Layout.from_example(example, support)
    data = as_rows(data)
    with x64():
        traced = _trace_both(log_prior, log_likelihood, data, layout)
        check_reads(traced, layout, "log_prior + log_likelihood")
        check_derived(derived, layout)
    return IndependentRows(
        layout=layout,
        prior_function=log_prior,
        likelihood_function=log_likelihood,
        derived=derived,
        data=data,
        returns_float32=traced.returns_float32,
    )


def as_rows(data: PyTree) -> PyTree:
    """`data` as NumPy arrays with a common leading axis, floats in float64.

    Raises:
        TargetError: naming the leaf that has no rows, another number of rows, values that are not
            numbers, or NaN.
    """
    arrays = jax.tree.map(_as_array, data, is_leaf=lambda leaf: leaf is None or _is_numbers(leaf))
    leaves = named_leaves(arrays, "data")
    if not leaves:
        raise TargetError(
            "`data` has no arrays. Pass for instance data={'x': x, 'y': y} with one row per"
            " observation."
        )
    for name, leaf in leaves.items():
        _check_leaf(_called(name), leaf)
    lengths = {_called(name): len(leaf) for name, leaf in leaves.items()}
    if len(set(lengths.values())) > 1:
        listed = ", ".join(f"{name} has {length}" for name, length in lengths.items())
        raise TargetError(
            f"`data` is ragged: {listed} rows. All arrays share their leading axis; close over what"
            " has none, or drop the rows that are not complete."
        )
    if 0 in lengths.values():
        raise TargetError(
            "`data` has zero rows. With no data the posterior is the prior; pass at least one row."
        )
    return arrays


def _trace_both(
    log_prior: ScalarFunction, log_likelihood: RowFunction, data: PyTree, layout: Layout
) -> Traced:
    """Trace prior and likelihood on N + 1 rows: so is found out what closes over the N rows."""
    length = len(jax.tree.leaves(data)[0]) + 1
    rows = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct((length, *leaf.shape[1:]), leaf.dtype), data
    )
    names = [block.name for block in layout.blocks]

    def joint(params, rows):
        with explained("log_prior", names):
            prior = scalar(log_prior(params), "log_prior", may_be_constant=True)
        with explained("log_likelihood", names):
            return prior + jnp.sum(
                vector(_on_any_rows(log_likelihood, params, rows, length), "log_likelihood", length)
            )

    return trace(joint, layout.structs(), rows)


def _on_any_rows(
    log_likelihood: RowFunction, params: PyTree, rows: PyTree, length: int
) -> Validated[Array, "tracing.vector"]:
    try:
        return log_likelihood(params, rows)
    except Exception as error:
        error.add_note(
            f"tightbound: `log_likelihood` was called with {length} rows, one more than `data` has,"
            " because it must work for any number of rows. If shapes disagree by one, it closes"
            " over data that belong into `data`."
        )
        raise


def _is_numbers(leaf: object) -> bool:
    """Whether a list is an array written out, and not a container of arrays."""
    return isinstance(leaf, list) and all(
        isinstance(x, (int, float, str)) or _is_numbers(x) for x in leaf
    )


def _called(name: str) -> str:
    return "`data`" if name == "z" else f"`data[{name!r}]`"


def _as_array(leaf: object) -> Shaped[Array, "..."]:
    # One of many data sets in a compiled program: checked where it is known
    if isinstance(leaf, jax.core.Tracer):
        return leaf
    if np.ma.isMaskedArray(leaf) and np.ma.is_masked(leaf):
        raise TargetError(
            "`data` contains a masked array with masked entries; drop or impute these rows first."
        )
    try:
        array = np.array(leaf)  # a copy: the target must not change when the caller's array does
    except Exception as error:
        raise TargetError(
            f"`data` contains a {type(leaf).__name__} that cannot become an array: {error}"
        ) from error
    return (
        array.astype(np.float64, copy=False) if jnp.issubdtype(array.dtype, jnp.floating) else array
    )


def _check_leaf(name: str, leaf: Shaped[Array, "..."]) -> None:
    # What is traced keeps the precision that its program has
    if not (
        leaf.dtype == bool
        or np.issubdtype(leaf.dtype, np.integer)
        or jnp.issubdtype(leaf.dtype, jnp.floating)
    ):
        raise TargetError(
            f"{name} has dtype {leaf.dtype}, which is not numbers. Encode categories as integers"
            " and dates as floats, and drop or impute missing values."
        )
    if leaf.ndim == 0:
        raise TargetError(
            f"{name} is a single number, but every array in `data` has a leading axis of rows;"
            " close over it."
        )
    if isinstance(leaf, np.ndarray) and leaf.dtype == np.float64 and np.isnan(leaf).any():
        rows = np.flatnonzero(np.isnan(leaf).reshape(len(leaf), -1).any(axis=1))
        raise TargetError(
            f"{name} has NaN in row {rows[0]}"
            + (f" and {len(rows) - 1} more rows" if len(rows) > 1 else "")
            + ". Drop or impute these rows; a single NaN makes the whole log density NaN."
        )
