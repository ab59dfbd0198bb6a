"""Targets that can only be simulated.

Draws of parameters and data, and densities where they happen to be known.
"""

from collections.abc import Callable, Mapping
from typing import Any, final

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np

from .._numerics import to_host, x64
from .._types import Array, PyTree
from ..results import PairingError, TargetError
from .base import AbstractTarget, Simulator
from .layout import Layout, named_leaves
from .named import AbstractNamedTarget
from .support import describe, holds
from .tracing import _UNTRACEABLE, explained, host_unless_traced, scalar

_LOOKS = 256  # draws on which the functions are looked at before anything is trained
_LEAST = 100  # stored simulations
_WAY_OUT = (
    "Write it with jax.numpy and jax.random; or simulate outside JAX, as often as you can afford,"
    " and pass the draws: tb.from_simulations(params, x)."
)


class AbstractSimulated(Simulator):
    """What simulators share: named values on R^dim through a layout, in which angles stay angles.

    Attributes:
        layout: names, shapes, supports; an angle counts as real.
        circular: which coordinates are angles.
    """

    layout: eqx.AbstractVar[Layout]

    @property
    def dim(self) -> int:
        return self.layout.dim

    @property
    def coordinate_names(self) -> tuple[str, ...]:
        return self.layout.coordinate_names

    @host_unless_traced
    def constrain(self, z: Array) -> PyTree:
        return self.layout.constrain(_wrapped(z, self.circular))

    @host_unless_traced
    def unconstrain(self, values: PyTree) -> Array:
        return _wrapped(self.layout.unconstrain(values), self.circular)


@final
class SimulatedModel(AbstractSimulated):
    """A prior that can be drawn from and a simulator, both in JAX; made by `tb.from_simulator`."""

    layout: Layout
    circular: tuple[bool, ...] = eqx.field(static=True)
    draw_prior: Callable[..., Any]
    simulate: Callable[..., Any]
    log_prior: Callable[..., Any] | None
    log_likelihood: Callable[..., Any] | None

    def draw(self, key: jax.Array) -> tuple[Any, PyTree]:
        first, second = jr.split(key)
        params = self.layout.restrict(_floating(self.draw_prior(first)))
        return _wrapped(self.layout.unconstrain(params), self.circular), _floating(
            self.simulate(second, params)
        )

    def at(self, x: PyTree) -> "SimulatorPosterior":
        """The posterior of the data x, for `tb.fit`, `tb.check` and refinement.

        Raises:
            PairingError: `log_prior` or `log_likelihood` was not given.
        """
        for name in ("log_prior", "log_likelihood"):
            if getattr(self, name) is None:
                raise PairingError(
                    f"The posterior's density at given data needs `{name}`, which tb.from_simulator"
                    " was not given. Draws and checks by simulation do without it; refinement and"
                    " the other objectives do not."
                )
        with x64():
            x = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), x)
        return SimulatorPosterior(
            self.layout, None, False, self.circular, self.log_prior, self.log_likelihood, x
        )


@final
class SimulatorPosterior(AbstractNamedTarget):
    """The posterior of a simulator's parameters for given data, where the densities are known.

    Made by `target.at(x)`.

    In an angle the density is periodic: a Gaussian on the line is no approximation of it.
    """

    layout: Layout
    derived: None
    returns_float32: bool = eqx.field(static=True)
    circular: tuple[bool, ...] = eqx.field(static=True)
    prior: Any
    likelihood: Any
    x: PyTree

    @host_unless_traced
    def constrain(self, z: Array) -> PyTree:
        return self.layout.constrain(_wrapped(z, self.circular))

    @host_unless_traced
    def log_joint(self, values: PyTree) -> Array:
        params = self.layout.restrict(values)
        log_prior = scalar(self.prior(params), "log_prior", may_be_constant=True)
        return log_prior + scalar(
            self.likelihood(params, self.x), "log_likelihood", may_be_constant=True
        )


@final
class StoredSimulations(AbstractSimulated):
    """Simulations that were made already; made by `tb.from_simulations`.

    A draw is one of them at random.
    """

    layout: Layout
    circular: tuple[bool, ...] = eqx.field(static=True)
    z: Array
    x: PyTree

    @property
    def num_simulations(self) -> int:
        return int(self.z.shape[0])

    def take(self, index: Array) -> tuple[Array, PyTree]:
        z = jnp.asarray(self.z)[index]
        return z, jax.tree.map(lambda leaf: jnp.asarray(leaf)[index], self.x)

    def draw(self, key: jax.Array) -> tuple[Any, PyTree]:
        return self.take(jr.randint(key, (), 0, self.num_simulations))


def from_simulator(
    draw_prior: Callable[..., Any],
    simulate: Callable[..., Any],
    *,
    support: Mapping[str, Any] | None = None,
    log_prior: Callable[..., Any] | None = None,
    log_likelihood: Callable[..., Any] | None = None,
) -> SimulatedModel:
    """A target from a prior that can be drawn from and a simulator of the data: `tb.fit` trains a
    posterior for any data.

    Nuisance unknowns need no modelling: draw them inside `simulate` and forget them. Not needed
    where the log density is known and there is one data set: `tb.from_log_density` and an ordinary
    fit are closer and quicker.

    Arguments:
        draw_prior: `draw_prior(key) -> params`, a pytree (usually a dict) of named values inside
            their supports.
        simulate: `simulate(key, params) -> x`, an array or a pytree of arrays, of the same shapes
            whatever the parameters. Both functions run under JAX in float64; `key` is a JAX key.
        support: name -> support, as for `tb.from_log_density`, for parameters that are not on the
            whole real line: no posterior mass then lies outside. "circular" is an angle in [-pi,
            pi].
        log_prior: `log_prior(params) -> scalar`, nats; only for refinement and for other
            objectives.
        log_likelihood: `log_likelihood(params, x) -> scalar`, nats; likewise.

    Raises:
        TargetError: a function cannot be traced, ignores its key, returns other shapes or NaN in
            most draws; or the prior's draws lie outside `support`. The message names which, and the
            way out.
    """
    for name, given in (("draw_prior", draw_prior), ("simulate", simulate)):
        if not callable(given):
            raise TargetError(
                f"from_simulator: `{name}` must be a function, got {type(given).__name__}."
            )
    with x64(), jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        params, _ = _looks(draw_prior, simulate)
        layout, circular = _layout(params, support, "draw_prior")
        target = SimulatedModel(layout, circular, draw_prior, simulate, log_prior, log_likelihood)
        _check_densities(target, jax.tree.map(lambda leaf: leaf[0], params))
    return target


def from_simulations(
    params: PyTree, x: PyTree, *, support: Mapping[str, Any] | None = None
) -> StoredSimulations:
    """A target from simulations that were made already, in whatever language: N draws of the prior
    and their data.

    Arguments:
        params: named values, each with a leading axis N: independent draws of the prior.
        x: an array or a pytree of arrays with a leading axis N: the data simulated from them.
        support: name -> support, as for `tb.from_simulator`.

    Raises:
        TargetError: fewer than 100 finite simulations, different numbers of parameters and data,
            data of varying shapes, or draws outside `support`.
    """
    with x64():
        params, x = _columns(params, "params"), _columns(x, "x")
        counts = {
            name: len(leaf) for name, leaf in [*params.items(), *named_leaves(x, "x").items()]
        }
        if len(set(counts.values())) > 1:
            raise TargetError(
                f"from_simulations: the leading axes differ: {counts}. Give each parameter and x"
                " one row per draw."
            )
        good = np.ones(next(iter(counts.values())), bool)
        for leaf in [*params.values(), *jax.tree.leaves(x)]:
            good &= np.isfinite(leaf).reshape(len(good), -1).all(axis=1)
        if good.sum() < _LEAST:
            raise TargetError(
                f"from_simulations: {int(good.sum())} of {len(good)} simulations are finite, too"
                f" few to learn from and to check on; {_LEAST} are the least, thousands are usual."
            )
        params, x = (
            {k: v[good] for k, v in params.items()},
            jax.tree.map(lambda leaf: leaf[good], x),
        )
        layout, circular = _layout(params, support, "params")
        z = np.asarray(jax.vmap(lambda p: _wrapped(layout.unconstrain(p), circular))(params))
    return StoredSimulations(layout, circular, z, x)


def _looks(draw_prior: Callable[..., Any], simulate: Callable[..., Any]) -> tuple[Any, Any]:
    """256 draws of the parameters and of x, after everything that can be wrong with the two
    functions was looked for.
    """
    keys, others = jr.split(jr.key(0), _LOOKS), jr.split(jr.key(1), _LOOKS)
    params = _mapped("draw_prior", lambda k: draw_prior(k), keys)
    if any(leaf.ndim and leaf.shape[0] != _LOOKS for leaf in jax.tree.leaves(params)):
        raise TargetError("from_simulator: `draw_prior` returned values without fixed shapes.")
    for name, leaf in named_leaves(params, "draw_prior").items():
        if not np.isfinite(leaf).all():
            raise TargetError(
                f"`draw_prior` returned NaN or infinity for {name!r}; a prior's draws must be"
                " finite."
            )
        if np.all(leaf == leaf[:1]):
            raise TargetError(
                f"`draw_prior` returned the same {name!r} for {_LOOKS} keys: it ignores its key."
                " Draw with jax.random, as in jax.random.normal(key), and split the key for"
                " several values."
            )
    x = _mapped("simulate", simulate, keys, params)
    again = _mapped("simulate", simulate, others, params)
    if [a.shape for a in jax.tree.leaves(x)] != [a.shape for a in jax.tree.leaves(again)]:
        raise TargetError(
            "`simulate` returned data of different shapes in two calls. Its shapes must be fixed:"
            " pad to the longest, with a mask beside it, or reduce the data to summaries of a fixed"
            " length."
        )
    _check_data(x, again, params)
    return params, x


def _mapped(argument: str, function: Callable[..., Any], keys: Any, *rest: Any) -> Any:
    """The function at many keys, on the host, with errors that name it."""
    names = None if argument == "draw_prior" else list(named_leaves(rest[0], "params"))
    try:
        with explained(argument, names):
            out = jax.jit(jax.vmap(lambda k, *more: _floating(function(k, *more))))(keys, *rest)
    except TargetError as error:
        if isinstance(error.__cause__, _UNTRACEABLE):
            raise TargetError(
                f"JAX cannot trace `{argument}`. {_WAY_OUT}"
                f" {str(error).split('JAX said:')[-1].strip()}"
            ) from error
        raise
    if not jax.tree.leaves(out):
        raise TargetError(f"`{argument}` returned nothing; is its `return` missing?")
    return to_host(out)


def _check_data(x: Any, again: Any, params: Any) -> None:
    """Data that vary with the key, and are finite in most draws."""
    pairs = list(zip(jax.tree.leaves(x), jax.tree.leaves(again), strict=True))
    finite = np.ones(_LOOKS, bool)
    for leaf, _ in pairs:
        finite &= np.isfinite(leaf).reshape(_LOOKS, -1).all(axis=1)
    if finite.mean() < 0.5:
        bad = {
            k: float(np.ravel(v[np.argmin(finite)])[0])
            for k, v in named_leaves(params, "params").items()
        }
        raise TargetError(
            f"`simulate` returned NaN or infinity in {1 - finite.mean():.0%} of {_LOOKS} draws, for"
            f" instance at {bad}. Narrow the prior, or return finite summaries where the simulation"
            " breaks down. (A few such draws do no harm: they are left out, which is right for"
            " data that are finite.)"
        )
    if all(np.array_equal(a[finite], b[finite], equal_nan=True) for a, b in pairs):
        raise TargetError(
            "`simulate` returned the same data for two different keys, at every draw of the"
            " parameters: it ignores its key, so the data would have no noise and the posterior no"
            " width. Draw its randomness with jax.random from the key; if the model has none, add"
            " the measurement error that the data have."
        )


def _layout(params: Any, support: Any, argument: str) -> tuple[Layout, tuple[bool, ...]]:
    """The layout of values like one row of `params`, and which coordinates are angles."""
    support = dict(support or {})
    angles = {name for name, entry in support.items() if entry == "circular"}
    first = jax.tree.map(lambda leaf: leaf[0], params)
    for name in angles - set(named_leaves(first)):
        raise TargetError(f"`support` names {name!r}, which {argument} does not have.")
    straight = {name: entry for name, entry in support.items() if name not in angles}
    for name, leaf in named_leaves(params).items():
        if name in straight:
            _check_support(name, leaf, straight[name], argument)
    layout = Layout.from_example(first, straight)
    return layout, tuple(block.name in angles for block in layout.blocks for _ in range(block.size))


def _check_support(name: str, rows: np.ndarray, support: Any, argument: str) -> None:
    from .support import as_constraint

    constraint = as_constraint(support, name, rows.shape[1:])
    for row in rows:
        if not holds(constraint, np.asarray(row)):
            raise TargetError(
                f"`{argument}` drew {name} ="
                f" {np.array2string(np.asarray(row), precision=4, threshold=8)}, which is outside"
                f" its support {describe(constraint)}. The support must be that of the prior:"
                " correct one of the two."
            )


def _check_densities(target: SimulatedModel, params: Any) -> None:
    for name, function in (
        ("log_prior", target.log_prior),
        ("log_likelihood", target.log_likelihood),
    ):
        if function is None:
            continue
        if not callable(function):
            raise TargetError(
                f"from_simulator: `{name}` must be a function or None, got"
                f" {type(function).__name__}."
            )
        z, x = jax.eval_shape(target.draw, jr.key(0))
        del z
        arguments = (params,) if name == "log_prior" else (params, x)
        with explained(name, list(named_leaves(params))):
            jax.eval_shape(
                lambda *a, f=function, n=name: scalar(f(*a), n, may_be_constant=True), *arguments
            )


def _columns(tree: Any, argument: str) -> Any:
    """Leaves as float64 arrays with a leading axis.

    A list of arrays of different lengths is explained.
    """
    try:
        leaves = jax.tree.map(
            lambda leaf: np.asarray(leaf, np.float64), tree, is_leaf=lambda t: isinstance(t, list)
        )
    except (ValueError, TypeError) as error:
        raise TargetError(
            f"from_simulations: `{argument}` cannot become arrays with one row per draw: {error}."
            " Data of varying lengths must be padded to the longest, with a mask beside them, or"
            " reduced to summaries of a fixed length."
        ) from error
    if argument == "params" and not isinstance(leaves, dict):
        raise TargetError(
            "from_simulations: `params` must be a dict from names to arrays with one row per draw."
        )
    if any(leaf.ndim == 0 for leaf in jax.tree.leaves(leaves)) or not jax.tree.leaves(leaves):
        raise TargetError(
            f"from_simulations: `{argument}` needs a leading axis with one row per draw."
        )
    return leaves


def _floating(tree: PyTree) -> PyTree:
    """Python numbers, integers and booleans as floating arrays."""
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.result_type(float)), tree)


def _wrapped(z: Array, circular: tuple[bool, ...]) -> Array:
    if not any(circular):
        return z
    z = jnp.asarray(z)
    return jnp.where(np.array(circular), jnp.mod(z + jnp.pi, 2 * jnp.pi) - jnp.pi, z)


def has_density(target: AbstractTarget) -> bool:
    """Whether the posterior's density at given data is known, up to a constant."""
    return (
        getattr(target, "log_prior", None) is not None
        and getattr(target, "log_likelihood", None) is not None
    )


__all__ = [
    "SimulatedModel",
    "SimulatorPosterior",
    "StoredSimulations",
    "from_simulations",
    "from_simulator",
    "has_density",
]
