"""Targets that can only be simulated.

Draws of parameters and data, and densities where they happen to be known.
"""

from collections.abc import Mapping
from typing import final

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Float, Int

from .._numerics import x64
from .._types import Array, PyTree, Validated
from ..results import PairingError, TargetError
from .base import AbstractTarget, Simulator
from .layout import Layout, named_leaves
from .log_density import AbstractLaidOut, AbstractNamedTarget, Derived, ScalarFunction
from .simulator_checks import (
    PriorDraw,
    Simulate,
    columns,
    floating,
    layout_of_params,
    looks,
)
from .support import Support
from .tracing import explained, host_unless_traced, scalar

# Stored simulations: with fewer nothing can be held out to check on
_LEAST = 100


class AbstractSimulated(AbstractLaidOut, Simulator):
    """What simulators share: named values on R^dim through a layout, in which angles stay angles.

    Attributes:
        layout: names, shapes, supports; an angle counts as real.
        circular: which coordinates are angles.
    """

    layout: eqx.AbstractVar[Layout]

    @host_unless_traced
    def constrain(self, z: Validated[Float[Array, "dim"], "Layout"]) -> PyTree:
        return self.layout.constrain(_wrapped(z, self.circular))

    @host_unless_traced
    def unconstrain(self, values: PyTree) -> Float[Array, "dim"]:
        return _wrapped(self.layout.unconstrain(values), self.circular)


@final
class SimulatedModel(AbstractSimulated):
    """A prior that can be drawn from and a simulator, both in JAX; made by `tb.from_simulator`."""

    layout: Layout
    circular: tuple[bool, ...] = eqx.field(static=True)
    draw_prior: PriorDraw
    simulate: Simulate
    log_prior: ScalarFunction | None
    log_likelihood: ScalarFunction | None

    @property
    def knows_density(self) -> bool:
        return self.log_prior is not None and self.log_likelihood is not None

    def draw(self, key: jax.Array) -> tuple[Float[Array, "dim"], PyTree]:
        first, second = jr.split(key)
        params = self.layout.restrict(floating(self.draw_prior(first)))
        return _wrapped(self.layout.unconstrain(params), self.circular), floating(
            self.simulate(second, params)
        )

    def at(self, x: PyTree) -> "SimulatorPosterior":
        """The posterior of the data x, for `tb.fit`, `tb.check` and refinement.

        Raises:
            PairingError: `log_prior` or `log_likelihood` was not given.
        """
        if self.log_prior is None or self.log_likelihood is None:
            name = "log_prior" if self.log_prior is None else "log_likelihood"
            raise PairingError(
                f"The posterior's density at given data needs `{name}`, which tb.from_simulator was"
                " not given. Draws and checks by simulation do without it; refinement and the other"
                " objectives do not."
            )
        with x64():
            x = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), x)
        return SimulatorPosterior(
            self.layout, None, False, self.circular, self.log_prior, self.log_likelihood, x
        )


@final
class SimulatorPosterior(AbstractNamedTarget):
    """The posterior of a simulator's parameters for given data, where the densities are known.

    Made by `target.at(x)`. In an angle the density is periodic: a Gaussian on the line is no
    approximation of it.
    """

    layout: Layout
    derived: Derived | None
    returns_float32: bool = eqx.field(static=True)
    circular: tuple[bool, ...] = eqx.field(static=True)
    prior: ScalarFunction
    likelihood: ScalarFunction
    x: PyTree

    @host_unless_traced
    def constrain(self, z: Validated[Float[Array, "dim"], "Layout"]) -> PyTree:
        return self.layout.constrain(_wrapped(z, self.circular))

    @host_unless_traced
    def log_joint(self, values: PyTree) -> Float[Array, ""]:
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
    z: Float[Array, "n dim"]
    x: PyTree

    @property
    def num_simulations(self) -> int:
        return int(self.z.shape[0])

    def take(self, index: Int[Array, "*batch"]) -> tuple[Float[Array, "*batch dim"], PyTree]:
        z = jnp.asarray(self.z)[index]
        return z, jax.tree.map(lambda leaf: jnp.asarray(leaf)[index], self.x)

    def draw(self, key: jax.Array) -> tuple[Float[Array, "dim"], PyTree]:
        return self.take(jr.randint(key, (), 0, self.num_simulations))


def from_simulator(
    draw_prior: Validated[PriorDraw, "from_simulator"],
    simulate: Validated[Simulate, "from_simulator"],
    *,
    support: Validated[Mapping[str, Support] | None, "layout_of_params"] = None,
    log_prior: Validated[ScalarFunction | None, "_check_density"] = None,
    log_likelihood: Validated[ScalarFunction | None, "_check_density"] = None,
) -> SimulatedModel:
    """A target from a prior that can be drawn from and a simulator of the data.

    `tb.fit` trains a posterior for any data. Nuisance unknowns need no modelling: draw them inside
    `simulate` and forget them. Not needed where the log density is known and there is one data set:
    `tb.from_log_density` and an ordinary fit are closer and quicker.

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
    # The user's functions run under JAX's own rules of promotion, whatever the caller has set
    with x64(), jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        params, x = looks(draw_prior, simulate)
        layout, circular = layout_of_params(params, support, "draw_prior")
        first = jax.tree.map(lambda leaf: leaf[0], params)
        data = jax.tree.map(lambda leaf: leaf[0], x)
        _check_density("log_prior", log_prior, (first,))
        _check_density("log_likelihood", log_likelihood, (first, data))
    return SimulatedModel(
        layout=layout,
        circular=circular,
        draw_prior=draw_prior,
        simulate=simulate,
        log_prior=log_prior,
        log_likelihood=log_likelihood,
    )


def from_simulations(
    params: PyTree,
    x: PyTree,
    *,
    support: Validated[Mapping[str, Support] | None, "layout_of_params"] = None,
) -> StoredSimulations:
    """A target from simulations that were made already, in whatever language.

    Arguments:
        params: named values, each with a leading axis N: independent draws of the prior.
        x: an array or a pytree of arrays with a leading axis N: the data simulated from them.
        support: name -> support, as for `tb.from_simulator`.

    Raises:
        TargetError: fewer than 100 finite simulations, different numbers of parameters and data,
            data of varying shapes, or draws outside `support`.
    """
    with x64():
        params, x = columns(params, "params"), columns(x, "x")
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
        params = {k: v[good] for k, v in params.items()}
        x = jax.tree.map(lambda leaf: leaf[good], x)
        layout, circular = layout_of_params(params, support, "params")
        z = np.asarray(jax.vmap(lambda p: _wrapped(layout.unconstrain(p), circular))(params))
    return StoredSimulations(layout=layout, circular=circular, z=z, x=x)


def _check_density(name: str, function: object, arguments: tuple[PyTree, ...]) -> None:
    """Raise a TargetError unless `function` is None, or returns one number."""
    if function is None:
        return
    if not callable(function):
        raise TargetError(
            f"from_simulator: `{name}` must be a function or None, got {type(function).__name__}."
        )
    with explained(name, list(named_leaves(arguments[0]))):
        jax.eval_shape(lambda *a: scalar(function(*a), name, may_be_constant=True), *arguments)


def _wrapped(z: Array, circular: tuple[bool, ...]) -> Array:
    """z with its angles brought into [-pi, pi]."""
    if not any(circular):
        return z
    z = jnp.asarray(z)
    return jnp.where(np.array(circular), jnp.mod(z + jnp.pi, 2 * jnp.pi) - jnp.pi, z)


def has_density(target: AbstractTarget) -> bool:
    """Whether the posterior's density at given data is known, up to a constant."""
    return isinstance(target, Simulator) and target.knows_density


__all__ = [
    "AbstractSimulated",
    "SimulatedModel",
    "SimulatorPosterior",
    "StoredSimulations",
    "from_simulations",
    "from_simulator",
    "has_density",
]
