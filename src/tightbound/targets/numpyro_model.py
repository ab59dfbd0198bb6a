"""A target from a NumPyro model."""

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, TypedDict, final

import equinox as eqx
import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from .._numerics import as_key, to_host, x64
from .._types import Array, Key, PyTree, Validated
from ..results import TargetError
from .base import Density, Joint, Observed, Predictive, Rows
from .layout import Layout
from .log_density import AbstractLaidOut
from .numpyro_inspection import Inspection, has_nan, inspect, refuse_nan
from .numpyro_program import (
    ClosedOver,
    PlateRows,
    Program,
    Site,
    Values,
    observed_values,
    param_values,
    pointwise_log_likelihood,
    predictions,
)
from .tracing import explained, host_unless_traced

if TYPE_CHECKING:
    from numpyro.primitives import CondIndepStackFrame
else:
    CondIndepStackFrame = object  # NumPyro is imported when the first model arrives


class _Shared(TypedDict):
    """The fields that both targets have."""

    program: Program
    layout: Layout
    rows: PlateRows
    live: tuple[str, ...]
    local: tuple[tuple[str, int], ...]
    replayed: bool
    observed_names: tuple[str, ...]
    returns_float32: bool


class AbstractNumPyroTarget(AbstractLaidOut, Density, Joint, Observed, Predictive):
    """What the targets from NumPyro models share.

    A site whose support is known beforehand goes through the layout. A *live* one, whose support is
    computed in the model (from other sites, or from arrays among the arguments), is a block on the
    real line in the layout, and NumPyro maps it where its support is known. Scale and mask handlers
    act on the log-Jacobians of live sites, as in NumPyro, but not on those of the others.

    Attributes:
        program: the model and its arguments.
        layout: names and shapes of the latent sites.
        rows: plate name -> indices of the rows that it holds; a plate without an entry is whole.
        live: names of the sites whose support is computed in the model.
        local: (site, axis) of the latent sites with one value for each row, whose values are taken
            at the rows held.
        replayed: whether `constrain` has to run the model, for its live and deterministic sites.
        observed_names: the sites with data.
        returns_float32: whether the model rounds below float64, which limits what any fit can
            reach.
    """

    program: eqx.AbstractVar[Program]
    layout: eqx.AbstractVar[Layout]
    rows: eqx.AbstractVar[PlateRows]
    live: eqx.AbstractVar[tuple[str, ...]]
    local: eqx.AbstractVar[tuple[tuple[str, int], ...]]
    replayed: eqx.AbstractVar[bool]
    observed_names: eqx.AbstractVar[tuple[str, ...]]
    returns_float32: eqx.AbstractVar[bool]

    @host_unless_traced
    def constrain(self, z: Validated[Float[Array, "dim"], "Layout"]) -> PyTree:
        """The values of all latent and deterministic sites at one point."""
        values, free = self._apart(self.layout.constrain(z))
        return self.program.complete(values, free, self.rows) if self.replayed else values

    @host_unless_traced
    def unconstrain(self, values: PyTree) -> Float[Array, "dim"]:
        """The point of the latent sites' values; deterministic ones are ignored."""
        values = self._latent(values)
        if self.live:
            free = self.program.release(values, self.rows)
            values |= {name: free[name] for name in self.live}
        return self.layout.unconstrain(values)

    @host_unless_traced
    def log_density(self, z: Validated[Float[Array, "dim"], "Layout"]) -> Float[Array, ""]:
        values, log_det = self.layout.constrain_with_log_det(z)
        return self.program.log_density(*self._apart(values), self.rows) + log_det

    @host_unless_traced
    def log_joint(self, values: PyTree) -> Float[Array, ""]:
        return self.program.log_joint(self._held(self._latent(values), self.rows), self.rows)

    def observed(self) -> dict[str, np.ndarray]:
        """The data at the observed sites, by name; a `numpyro.factor` has none."""
        with x64():
            return _on_host(observed_values(self.program, self.observed_names))

    def posterior_predictive(self, values: PyTree, key: Key) -> dict[str, np.ndarray]:
        """Data drawn at draws of the latent sites, every observed site afresh.

        Name of the observed site -> `[n, ...]`.

        Arguments:
            values: latent site -> `[n, ...]`, such as the draws of a fit; further entries are
                ignored.
            key: an int, a typed JAX key or a legacy one.
        """
        if not self.observed_names:
            return {}
        with x64():
            latent = self._latent(values)
            keys = jax.random.split(as_key(key), np.shape(next(iter(latent.values())))[0])
            return _on_host(predictions(self.program, self.observed_names, latent, keys))

    def pointwise_log_likelihood(self, values: PyTree) -> dict[str, np.ndarray]:
        if not self.observed_names:
            return {}
        with x64():
            return _on_host(
                pointwise_log_likelihood(self.program, self.observed_names, self._latent(values))
            )

    def _apart(self, values: Values) -> tuple[Values, Values]:
        """The layout's values, apart into final ones and the free coordinates of live sites."""
        final_values = {name: value for name, value in values.items() if name not in self.live}
        return self._held(final_values, self.rows), {name: values[name] for name in self.live}

    def _held(self, values: Values, rows: PlateRows) -> Values:
        """`values` with those of local sites at the rows only."""
        taken = {
            name: jnp.take(values[name], index, axis)
            for name, axis in self.local
            for index in rows.values()
        }
        return {**values, **taken}

    def _latent(self, values: PyTree) -> Values:
        names = [block.name for block in self.layout.blocks]
        missing = [name for name in names if name not in values]
        if missing:
            raise TargetError(
                f"`values` lacks the site {missing[0]!r}; it has {', '.join(values)}."
            )
        return {name: jnp.asarray(values[name]) for name in names}


@final
class NumPyroModel(AbstractNumPyroTarget):
    """A NumPyro model as a log density; made by `tb.from_numpyro`."""

    program: Program
    layout: Layout
    rows: PlateRows
    live: tuple[str, ...] = eqx.field(static=True)
    local: tuple[tuple[str, int], ...] = eqx.field(static=True)
    replayed: bool = eqx.field(static=True)
    observed_names: tuple[str, ...] = eqx.field(static=True)
    returns_float32: bool = eqx.field(static=True)


@final
class NumPyroRows(AbstractNumPyroTarget, Rows):
    """A NumPyro model with one subsampled plate; made by `tb.from_numpyro`.

    Its log density is on all rows; `take` gives minibatches. A "row" is an index into the plate:
    the model fetches the data at it, as in NumPyro's own subsampling.

    Attributes:
        plate: name of the plate.
        size: N, the size of the plate.
    """

    program: Program
    layout: Layout
    rows: PlateRows
    live: tuple[str, ...] = eqx.field(static=True)
    local: tuple[tuple[str, int], ...] = eqx.field(static=True)
    replayed: bool = eqx.field(static=True)
    observed_names: tuple[str, ...] = eqx.field(static=True)
    returns_float32: bool = eqx.field(static=True)
    plate: str = eqx.field(static=True)
    size: int = eqx.field(static=True)

    @property
    def num_rows(self) -> int:
        return len(self.rows[self.plate]) if self.rows else self.size

    @host_unless_traced
    def log_prior(self, z: Float[Array, "dim"]) -> Float[Array, ""]:
        values, log_det = self.layout.constrain_with_log_det(z)
        terms = self.program.terms(values, {})
        return sum((jnp.sum(term) for site, term in terms if self._frame(site) is None), log_det)

    @host_unless_traced
    def log_likelihood(self, z: Float[Array, "dim"], rows: PyTree) -> Float[Array, "rows"]:
        scale = self.size / len(rows)  # what the plate multiplies with
        values = self._held(self.layout.constrain(z), {self.plate: rows})
        terms = self.program.terms(values, {self.plate: rows})
        per_row = [
            self._per_row(frame, term) / scale
            for site, term in terms
            if (frame := self._frame(site)) is not None
        ]
        return sum(per_row, jnp.zeros(len(rows), jnp.result_type(float)))

    @host_unless_traced
    def rows_at(self, index: Int[Array, "rows"]) -> PyTree:
        return jnp.asarray(self.rows[self.plate])[index] if self.rows else jnp.asarray(index)

    @host_unless_traced
    def take(self, index: Int[Array, "rows"]) -> "NumPyroRows":
        return dataclasses.replace(self, rows={self.plate: self.rows_at(index)})

    def _frame(self, site: Site) -> CondIndepStackFrame | None:
        return next((frame for frame in site["cond_indep_stack"] if frame.name == self.plate), None)

    def _per_row(
        self, frame: CondIndepStackFrame, term: Float[jax.Array, "..."]
    ) -> Float[jax.Array, "rows"]:
        """A site's log probability, summed over all axes but that of the plate."""
        plate_axis = term.ndim + frame.dim  # NumPyro counts the axes of plates from the end
        return jnp.sum(term, axis=tuple(axis for axis in range(term.ndim) if axis != plate_axis))


def from_numpyro(
    model: Validated[Callable[..., object], "from_numpyro"], /, *args: PyTree, **kwargs: PyTree
) -> NumPyroModel | NumPyroRows:
    """A target from a NumPyro model and the arguments to call it with.

    Supported: continuous latent sites with any support that NumPyro can map from R^d, also one that
    depends on other sites; plates, `deterministic`, `factor`, `ImproperUniform`, masks,
    `numpyro.handlers` (reparam with its reparameterisers, condition, scale, scope, ...), and
    `numpyro.contrib.control_flow.scan`. A `numpyro.param` is held at its initial value; give it a
    prior with `numpyro.handlers.lift` to infer it. Discrete latent sites are not supported: sum
    them out in the model, as MixtureSameFamily does.

    A plate with `subsample_size` below its size gives a target of rows: the log density is that of
    all rows, and minibatches are what a solver takes on its own account
    (`tb.estimators.Minibatch`). Latent sites inside the plate have a value for every row, and their
    prior counts among the terms of the row. With several subsampled plates, or with supports that
    are computed in the model, the target has the log density of all rows only.

    Arrays among the arguments are traced: another fit with data of the same shapes compiles
    nothing. Where a model cannot be traced in them (it calls NumPy on them, or takes shapes from
    their entries), they are closed over. Numbers, strings and other objects stay as they are. All
    computation is in float64; float32 arrays are widened.

    Arguments:
        model: a function with NumPyro primitives, its data observed (`obs=`) or conditioned on.
        *args: its positional arguments.
        **kwargs: its keyword arguments.

    Raises:
        TargetError: for a site that cannot be handled, observed data with NaN or outside the
            support of their distribution, or a model that JAX cannot trace; the message names the
            site and the way out. Other exceptions that the model raises pass through, with a note.
    """
    if not callable(model):
        raise TargetError(
            f"`model` must be a NumPyro model, that is, a function; got {type(model).__name__}."
        )
    with x64():
        program, seen = _opened(model, *jax.tree.map(_as_argument, (args, kwargs)))
        _refuse_unchecked_nan(program, seen)
        fixed = to_host(param_values(program, seen.params)) if seen.params else {}
        program = Program(program.model, program.arguments, fixed, validates=bool(seen.unchecked))
    common: _Shared = {
        "program": program,
        "layout": Layout.from_blocks(seen.blocks),
        "rows": {},
        "live": seen.live,
        "local": seen.local,
        "replayed": bool(seen.live or seen.deterministic),
        "observed_names": seen.observed,
        "returns_float32": seen.returns_float32,
    }
    if len(seen.subsampled) == 1 and not seen.live:
        ((plate, size),) = seen.subsampled.items()
        return NumPyroRows(**common, plate=plate, size=size)
    return NumPyroModel(**common)


def _opened(
    model: Callable[..., object], args: tuple[PyTree, ...], kwargs: dict[str, PyTree]
) -> tuple[Program, Inspection]:
    """The program and what a trace of it shows.

    Its arguments are closed over where the model cannot be traced in them.
    """
    leaves = [
        leaf
        for leaf in jax.tree.leaves((args, kwargs))
        if isinstance(leaf, (np.ndarray, jax.Array))
    ]
    if leaves and all(
        jnp.issubdtype(leaf.dtype, jnp.number) or leaf.dtype == bool for leaf in leaves
    ):
        program = Program(model, (args, kwargs), {})
        try:
            return program, inspect(program)
        except TargetError:
            raise
        # NumPy raises whatever it likes on a tracer; a real error comes back below
        except Exception:
            pass
    program = Program(model, ClosedOver((args, kwargs)), {})
    with explained("model"):
        return program, inspect(program)


def _on_host(values: Values) -> dict[str, np.ndarray]:
    return {name: np.asarray(value) for name, value in values.items()}


def _as_argument(leaf: PyTree) -> PyTree:
    """A leaf of the model's arguments: floating arrays in float64, NumPy scalars as numbers.

    A Python number may be a size, which must not be traced; so may a NumPy scalar.
    """
    if isinstance(leaf, np.generic):
        return leaf.item()
    if isinstance(leaf, jax.core.Tracer):  # one of many data sets in a compiled program
        return leaf
    if isinstance(leaf, (np.ndarray, jax.Array)) and jnp.issubdtype(leaf.dtype, jnp.floating):
        leaf = (
            np.array(leaf, np.float64)
            if isinstance(leaf, np.ndarray)
            else jnp.asarray(np.asarray(leaf, np.float64))
        )
    return leaf


def _refuse_unchecked_nan(program: Program, seen: Inspection) -> None:
    """Raise a TargetError that names the site with NaN in data that no mask covers."""
    arguments = (
        program.arguments.value if isinstance(program.arguments, ClosedOver) else program.arguments
    )
    if not any(map(has_nan, [*jax.tree.leaves(arguments), *seen.constants])):
        return  # the usual case, which compiles nothing
    for name, data in to_host(observed_values(program, seen.observed)).items():
        if name not in seen.masked:
            refuse_nan(name, data)
