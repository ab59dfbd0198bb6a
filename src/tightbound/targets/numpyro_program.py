"""A NumPyro model as a function of its latent values.

Everything that knows NumPyro's handlers is in this file. NumPyro itself is imported when the first
model arrives.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, TypeAlias, TypedDict, cast

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from .._types import Array, PyTree, Scalar
from ..results import TargetError
from .support import Constraint, bijection, reason_against

if TYPE_CHECKING:
    from numpyro.distributions import Distribution
    from numpyro.primitives import CondIndepStackFrame
else:
    # Names for the annotations alone
    Distribution = CondIndepStackFrame = object

_CHUNK = 64  # draws of a posterior predictive that are computed together: bounds its memory


class Site(TypedDict):
    """What we read of a message of NumPyro."""

    type: str
    name: str
    fn: Distribution
    value: jax.Array
    scale: jax.Array | float | None
    is_observed: bool
    args: tuple[int, ...]
    kwargs: dict[str, PyTree]
    infer: dict[str, PyTree]
    cond_indep_stack: list[CondIndepStackFrame]


Values: TypeAlias = dict[str, Array | float]
"""By name of a site: its value, final or unconstrained."""

PlateRows: TypeAlias = dict[str, Int[Array, "rows"]]
"""By name of a plate: the indices that it holds; a plate without an entry is whole."""

AtSite: TypeAlias = Callable[[Site], jax.Array | None]
"""What NumPyro's `substitute` takes: a value for a site, or None to leave it."""

Call: TypeAlias = tuple[tuple[PyTree, ...], dict[str, PyTree]]
"""Positional and keyword arguments of a model."""


class ClosedOver:
    """Arguments that JAX may not trace: an opaque leaf, so that the model sees them as they are."""

    def __init__(self, value: Call):
        self.value = value


class Program(eqx.Module):
    """A NumPyro model with its arguments.

    In all methods `values` are final values of latent sites, `free` unconstrained ones, which
    NumPyro maps where it learns their support.

    Attributes:
        model: the function with NumPyro primitives.
        arguments: those of the model, whose arrays are traced under jit; or in `ClosedOver`.
        fixed: the values of `numpyro.param` sites.
        validates: whether NumPyro compares values with supports at each evaluation, as it does by
            default. Latent values are inside theirs by construction; data that were checked
            beforehand need it no more, and without it a program compiles a sixth faster.
    """

    model: Callable[..., object]
    arguments: Call | ClosedOver
    fixed: Values
    validates: bool = eqx.field(static=True, default=True)

    def log_joint(self, values: Values, rows: PlateRows) -> Float[jax.Array, ""]:
        """log p(values, data), no Jacobian, in nats."""
        from numpyro.infer.util import log_density

        with self._validation():
            return jnp.asarray(
                log_density(self._conditioned(values, rows), *self._arguments(), {})[0]
            )

    def log_density(self, values: Values, free: Values, rows: PlateRows) -> Float[jax.Array, ""]:
        """log p(values, data) + log|J| of the free sites, in nats."""
        from numpyro.infer.util import potential_energy

        with self._validation():
            return -jnp.asarray(
                potential_energy(self._conditioned(values, rows), *self._arguments(), free)
            )

    def complete(self, values: Values, free: Values, rows: PlateRows) -> Values:
        """`values` with those of free and deterministic sites."""
        from numpyro.infer.util import constrain_fn

        model = self._conditioned(values, rows)
        added = constrain_fn(model, *self._arguments(), free, return_deterministic=True)
        return {**values, **{name: jnp.asarray(value) for name, value in added.items()}}

    def release(self, values: Values, rows: PlateRows) -> Values:
        """The unconstrained values behind `values`: the inverse of NumPyro's map of free sites."""
        from numpyro.infer.util import unconstrain_fn

        return unconstrain_fn(self._conditioned({}, rows), *self._arguments(), values)

    def sites(self, values: Values, rows: PlateRows) -> dict[str, Site]:
        """NumPyro's trace of the model."""
        return _trace(self._conditioned(values, rows), *self._arguments())

    def terms(self, values: Values, rows: PlateRows) -> list[tuple[Site, jax.Array]]:
        """The latent, observed and factor sites, each with its scaled log probability, in nats."""
        with self._validation():
            return [(site, log_prob(site)) for site in sampled(self.sites(values, rows))]

    def predicted(self, values: Values, key: jax.Array) -> dict[str, Site]:
        """NumPyro's trace of the model with its observed sites drawn afresh."""
        from numpyro import handlers

        model = handlers.seed(self.model, rng_seed=key, hide_types=["plate"])
        model = handlers.substitute(self._substituted(model, values, {}), substitute_fn=_redrawn)
        return _trace(model, *self._arguments())

    def explored(self, start: AtSite, on_plate: AtSite) -> dict[str, Site]:
        """NumPyro's trace of the model with `start(site)` at each latent site."""
        from numpyro import handlers

        model = handlers.substitute(self._keyed(), substitute_fn=on_plate)
        return _trace(handlers.substitute(model, substitute_fn=start), *self._arguments())

    def _conditioned(self, values: Values, rows: PlateRows) -> Callable[..., object]:
        return self._substituted(self._keyed(), values, rows)

    def _keyed(self) -> Callable[..., object]:
        """The model with a key for its prng_key statements.

        A latent site that lacks a value gets none: it is a fault here, and must not be drawn.
        """
        from numpyro import handlers

        return handlers.seed(self.model, rng_seed=0, hide_types=["sample", "plate"])

    def _substituted(
        self, model: Callable[..., object], values: Values, rows: PlateRows
    ) -> Callable[..., object]:
        from numpyro import handlers

        model = handlers.substitute(model, substitute_fn=lambda site: plate_indices(site, rows))
        # NumPyro takes NumPy arrays as well, and they stay known numbers to the model
        data = cast(dict[str, jax.Array], {**self.fixed, **values})
        return handlers.substitute(model, data=data)

    def _validation(self) -> contextlib.AbstractContextManager[object]:
        from numpyro import validation_enabled

        return contextlib.nullcontext() if self.validates else validation_enabled(False)

    def _arguments(self) -> Call:
        return self.arguments.value if isinstance(self.arguments, ClosedOver) else self.arguments


def sampled(sites: dict[str, Site]) -> Iterator[Site]:
    """The sites that have a log probability: latent, observed and factor ones."""
    return (site for site in sites.values() if site["type"] == "sample")


def log_prob(site: Site) -> Float[jax.Array, "*batch"]:
    """A site's scaled log probability over its batch axes, nats."""
    unscaled = jnp.asarray(site["fn"].log_prob(site["value"]))
    return unscaled if site["scale"] is None else site["scale"] * unscaled


def plate_indices(site: Site, rows: PlateRows) -> jax.Array | None:
    """What a plate holds: the rows asked for, else all, whatever subsample size the model wants.

    The size in the message is changed too, which is where NumPyro takes the scale N / B from.
    """
    if site["type"] != "plate":
        return None
    size = site["args"][0]
    if site["name"] in rows:
        index = jnp.asarray(rows[site["name"]])
    else:
        # Known numbers even under tracing, so that a model may index NumPy data with them.
        with jax.ensure_compile_time_eval():
            index = jnp.asarray(np.arange(size))
    site["args"] = (size, len(index))
    return index


@eqx.filter_jit
def param_values(program: Program, names: tuple[str, ...]) -> Values:
    """The initial values of the `numpyro.param` sites."""
    sites = program.explored(start_values(0.0), lambda site: plate_indices(site, {}))
    return {name: sites[name]["value"] for name in names}


@eqx.filter_jit
def observed_values(program: Program, names: Iterable[str]) -> Values:
    """The data at the observed sites."""
    sites = program.explored(start_values(0.0), lambda site: plate_indices(site, {}))
    return {name: jnp.asarray(sites[name]["value"]) for name in names}


@eqx.filter_jit
def predictions(
    program: Program, names: tuple[str, ...], values: Values, keys: jax.Array
) -> Values:
    """Fresh data at the observed sites for each draw: name -> `[n, ...]`."""

    def one(draw):
        sites = program.predicted(*draw)
        return {name: sites[name]["value"] for name in names}

    return jax.lax.map(one, (values, keys), batch_size=_CHUNK)


@eqx.filter_jit
def pointwise_log_likelihood(program: Program, names: tuple[str, ...], values: Values) -> Values:
    """Unscaled log likelihood of each observation for each draw: name -> `[n, ...]`, nats."""

    def one(draw):
        sites = program.sites(draw, {})
        return {name: sites[name]["fn"].log_prob(sites[name]["value"]) for name in names}

    return jax.lax.map(one, values, batch_size=_CHUNK)


def _trace(
    model: Callable[..., object], args: tuple[PyTree, ...], kwargs: dict[str, PyTree]
) -> dict[str, Site]:
    from numpyro import handlers

    # NumPyro's own type of a message is dict[str, Any]
    return cast(dict[str, Site], handlers.trace(model).get_trace(*args, **kwargs))


def start_values(origin: Scalar) -> AtSite:
    """A value for each latent site: the one whose unconstrained coordinates are all `origin`.

    Only its shape is used.
    """

    def value(site: Site) -> jax.Array | None:
        if site["type"] != "sample" or site["is_observed"]:
            return None
        name, fn = site["name"], site["fn"]
        support = getattr(fn, "support", None)
        reason = _reason_against(fn, support)
        if reason or support is None:
            raise TargetError(f"Site {name!r} ({type(fn).__name__}): {reason}.")
        transform = bijection(support)
        shape = (*site["kwargs"].get("sample_shape", ()), *fn.shape())
        return transform(jnp.full(transform.inverse_shape(shape), origin, jnp.result_type(float)))

    return value


def _redrawn(site: Site) -> jax.Array | None:
    """New data of the shape of the old for an observed site.

    Unlike `numpyro.handlers.uncondition`, this reaches into scans, and draws one number per datum
    where a single distribution stands for all of them.
    """
    from numpyro import prng_key

    if site["type"] != "sample" or not site["is_observed"] or site["infer"].get("is_auxiliary"):
        return None
    fn, shape = site["fn"], jnp.shape(site["value"])
    batch = jnp.broadcast_shapes(shape[: len(shape) - fn.event_dim], fn.batch_shape)
    return jnp.asarray(fn.expand(batch).sample(prng_key()))


def _reason_against(fn: Distribution, support: Constraint | None) -> str | None:
    import numpyro.distributions as dist

    while isinstance(fn, (dist.Independent, dist.ExpandedDistribution)):
        fn = fn.base_dist
    if isinstance(fn, dist.Delta):
        return "a latent site with a single possible value; record it with numpyro.deterministic"
    if support is None:
        return "its distribution does not say what its support is"
    if support is dist.constraints.sphere:
        return "directions on a sphere; use numpyro.handlers.reparam with ProjectedNormalReparam"
    return reason_against(support)
