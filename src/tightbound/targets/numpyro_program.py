"""A NumPyro model as a function of its latent values.

Everything that knows NumPyro's handlers is in this file.

NumPyro itself is imported when the first model arrives.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from .._types import PyTree
from ..results import TargetError
from .layout import Block
from .support import bijection, normalised, reason_against
from .tracing import trace

_CHUNK = 64  # draws of a posterior predictive that are computed together: bounds its memory

Site = dict[str, Any]
"""A message of NumPyro: type, name, fn, value, scale, ..."""


class ClosedOver:
    """Arguments that JAX may not trace: an opaque leaf, so that the model sees them as they are."""

    def __init__(self, value: Any):
        self.value = value


class Program(eqx.Module):
    """A NumPyro model with its arguments.

    In all methods `values` are final values of latent sites by name, `free` unconstrained ones
    (NumPyro maps them where it learns their support), and `rows` holds plate name -> indices; a
    plate without an entry is whole.

    Attributes:
        model: the function with NumPyro primitives.
        arguments: `(args, kwargs)`, whose arrays are traced under jit; or those in `ClosedOver`.
        fixed: the values of `numpyro.param` sites.
        validates: whether NumPyro compares values with supports at each evaluation, as it does by
            default. Latent values are inside theirs by construction; data that were checked
            beforehand need it no more, and without it a program compiles a sixth faster.
    """

    model: Callable[..., Any]
    arguments: Any
    fixed: dict[str, Any]
    validates: bool = eqx.field(static=True, default=True)

    def log_joint(self, values: dict, rows: dict) -> jax.Array:
        """log p(values, data), no Jacobian: a scalar in nats."""
        from numpyro.infer.util import log_density

        with self._validation():
            return jnp.asarray(
                log_density(self._conditioned(values, rows), *self._arguments(), {})[0]
            )

    def log_density(self, values: dict, free: dict, rows: dict) -> jax.Array:
        """log p(values, data) + log|J| of the free sites: a scalar in nats."""
        from numpyro.infer.util import potential_energy

        with self._validation():
            return -jnp.asarray(
                potential_energy(self._conditioned(values, rows), *self._arguments(), free)
            )

    def complete(self, values: dict, free: dict, rows: dict) -> dict[str, jax.Array]:
        """`values` with those of free and deterministic sites."""
        from numpyro.infer.util import constrain_fn

        model = self._conditioned(values, rows)
        added = constrain_fn(model, *self._arguments(), free, return_deterministic=True)
        return {**values, **{name: jnp.asarray(value) for name, value in added.items()}}

    def release(self, values: dict, rows: dict) -> dict[str, jax.Array]:
        """The unconstrained values behind `values`: the inverse of what NumPyro does to free sites."""
        from numpyro.infer.util import unconstrain_fn

        return unconstrain_fn(self._conditioned({}, rows), *self._arguments(), values)

    def sites(self, values: dict, rows: dict) -> dict[str, Site]:
        """NumPyro's trace of the model."""
        return _trace(self._conditioned(values, rows), *self._arguments())

    def terms(self, values: dict, rows: dict) -> list[tuple[Site, jax.Array]]:
        """The sites with a log probability (latent, observed and factor ones), each with it,
        scaled, in nats.
        """
        with self._validation():
            return [(site, log_prob(site)) for site in sampled(self.sites(values, rows))]

    def predicted(self, values: dict, key: jax.Array) -> dict[str, Site]:
        """NumPyro's trace of the model with its observed sites drawn afresh."""
        from numpyro import handlers

        model = handlers.seed(self.model, rng_seed=key, hide_types=["plate"])
        model = handlers.substitute(self._substituted(model, values, {}), substitute_fn=_redrawn)
        return _trace(model, *self._arguments())

    def explored(
        self, start: Callable[[Site], Any], on_plate: Callable[[Site], Any]
    ) -> dict[str, Site]:
        """NumPyro's trace of the model with `start(site)` at each latent site."""
        from numpyro import handlers

        model = handlers.substitute(self._keyed(), substitute_fn=on_plate)
        return _trace(handlers.substitute(model, substitute_fn=start), *self._arguments())

    def _conditioned(self, values: dict, rows: dict) -> Callable[..., Any]:
        return self._substituted(self._keyed(), values, rows)

    def _keyed(self) -> Callable[..., Any]:
        """The model with a key for its prng_key statements, and none for a latent site that lacks a
        value.
        """
        from numpyro import handlers

        return handlers.seed(self.model, rng_seed=0, hide_types=["sample", "plate"])

    def _substituted(
        self, model: Callable[..., Any], values: dict, rows: dict
    ) -> Callable[..., Any]:
        from numpyro import handlers

        model = handlers.substitute(model, substitute_fn=lambda site: plate_indices(site, rows))
        return handlers.substitute(model, data={**self.fixed, **values})

    def _validation(self) -> contextlib.AbstractContextManager[Any]:
        from numpyro import validation_enabled

        return contextlib.nullcontext() if self.validates else validation_enabled(False)

    def _arguments(self) -> tuple[tuple, dict]:
        return self.arguments.value if isinstance(self.arguments, ClosedOver) else self.arguments


class Inspection(NamedTuple):
    """What one trace of a model on shapes alone shows.

    Attributes:
        blocks: the latent sites, as a layout wants them.
        live: those whose support is computed in the model: from other sites, or from traced
            arguments.
        observed: sites with data.
        masked: those of them that a mask covers, in which NaN may stand.
        unchecked: those of them whose data are not known before the model runs, or are masked.
        deterministic: names of the deterministic sites.
        params: names of the numpyro.param sites.
        subsampled: plate name -> size, for plates that ask for fewer rows than they have.
        local: (site, axis) of latent sites inside subsampled plates, with the axis of the plate
            counted from the end.
        returns_float32: whether the log density is rounded below float64.
        constants: the arrays that the model closes over.
    """

    blocks: dict[str, Block]
    live: tuple[str, ...]
    observed: tuple[str, ...]
    masked: tuple[str, ...]
    unchecked: tuple[str, ...]
    deterministic: tuple[str, ...]
    params: tuple[str, ...]
    subsampled: dict[str, int]
    local: tuple[tuple[str, int], ...]
    returns_float32: bool
    constants: list[Any]


def inspect(program: Program) -> Inspection:
    """Trace the model once, on shapes alone; call inside `x64()`.

    Raises:
        TargetError: for a site that cannot become coordinates of R^d, by name.
    """
    found: dict[str, Any] = {}
    subsampled: dict[str, int] = {}

    def on_plate(site):
        if site["type"] == "plate" and site["args"][1] not in (None, site["args"][0]):
            subsampled[site["name"]] = site["args"][0]
        return plate_indices(site, {})

    def log_density(traced, origin):
        sites = eqx.combine(traced, static).explored(_start(origin), on_plate)
        data = {
            id(t): array
            for t, array in zip(jax.tree.leaves(traced), jax.tree.leaves(arrays), strict=True)
        }
        found.update(_classified(sites, subsampled, data))
        return jnp.asarray(sum(jnp.sum(log_prob(site)) for site in sampled(sites)))

    arrays, static = eqx.partition(program, lambda leaf: isinstance(leaf, (np.ndarray, jax.Array)))
    traced = trace(log_density, arrays, jax.ShapeDtypeStruct((), np.float64))
    return Inspection(
        **found,
        subsampled=subsampled,
        returns_float32=traced.returns_float32,
        constants=traced.constants,
    )


def sampled(sites: dict[str, Site]) -> Iterator[Site]:
    """The sites that have a log probability: latent, observed and factor ones."""
    return (site for site in sites.values() if site["type"] == "sample")


def log_prob(site: Site) -> jax.Array:
    """A site's scaled log probability over its batch axes, nats."""
    unscaled = site["fn"].log_prob(site["value"])
    return unscaled if site["scale"] is None else site["scale"] * unscaled


def refuse_nan(name: str, data: Any) -> None:
    """Raise a TargetError that names the site when its data contain NaN."""
    if has_nan(data):
        where = np.argwhere(np.isnan(data))
        raise TargetError(
            f"The data at site {name!r} have {len(where)} NaN among {np.size(data)} values, the"
            f" first at index {tuple(where[0].tolist())}. Drop them, make them a latent site, or"
            " mask them: with numpyro.handlers.mask(mask=~np.isnan(data))."
        )


def has_nan(leaf: Any) -> bool:
    """Whether `leaf` is a floating array or number with NaN in it."""
    if isinstance(leaf, Tracer) or not isinstance(leaf, (np.ndarray, np.generic, jax.Array, float)):
        return False
    dtype = getattr(leaf, "dtype", np.dtype(float))
    return bool(jnp.issubdtype(dtype, jnp.floating) and np.isnan(np.asarray(leaf)).any())


def plate_indices(site: Site, rows: dict[str, Any]) -> jax.Array | None:
    """What a plate holds: the rows asked for, else all of them, whatever subsample size the model
    asks for.

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
def param_values(program: Program, names: tuple[str, ...]) -> dict[str, Any]:
    """The initial values of the `numpyro.param` sites."""
    sites = program.explored(_start(0.0), lambda site: plate_indices(site, {}))
    return {name: sites[name]["value"] for name in names}


@eqx.filter_jit
def observed_values(program: Program, names: Iterable[str]) -> dict[str, jax.Array]:
    """The data at the observed sites."""
    sites = program.explored(_start(0.0), lambda site: plate_indices(site, {}))
    return {name: jnp.asarray(sites[name]["value"]) for name in names}


@eqx.filter_jit
def predictions(
    program: Program, names: tuple[str, ...], values: PyTree, keys: jax.Array
) -> dict[str, jax.Array]:
    """Fresh data at the observed sites for each draw: name -> `[draw, ...]`."""

    def one(draw):
        sites = program.predicted(*draw)
        return {name: sites[name]["value"] for name in names}

    return jax.lax.map(one, (values, keys), batch_size=_CHUNK)


@eqx.filter_jit
def pointwise_log_likelihood(
    program: Program, names: tuple[str, ...], values: PyTree
) -> dict[str, jax.Array]:
    """Unscaled log likelihood of each observation for each draw: name -> `[draw, ...]`, nats."""

    def one(draw):
        sites = program.sites(draw, {})
        return {name: sites[name]["fn"].log_prob(sites[name]["value"]) for name in names}

    return jax.lax.map(one, values, batch_size=_CHUNK)


def _trace(model: Callable[..., Any], args: tuple, kwargs: dict) -> dict[str, Site]:
    from numpyro import handlers

    return handlers.trace(model).get_trace(*args, **kwargs)


def _start(origin: Any) -> Callable[[Site], jax.Array | None]:
    """A value for each latent site: the one whose unconstrained coordinates are all `origin`.

    Only its shape is used.
    """

    def value(site: Site) -> jax.Array | None:
        if site["type"] != "sample" or site["is_observed"]:
            return None
        name, fn = site["name"], site["fn"]
        support = getattr(fn, "support", None)
        reason = _reason_against(fn, support)
        if reason:
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
    return fn.expand(batch).sample(prng_key())


def _reason_against(fn: Any, support: Any) -> str | None:
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


def _checked(site: Site, data: dict[int, Any]) -> bool:
    """Whether the data at a site are known, in which case they are inside the support of its
    distribution.

    `data` has the arrays behind the tracers that stand for the model's arguments, by the id of the
    tracer.
    """
    value, support = (
        data.get(id(site["value"]), site["value"]),
        getattr(site["fn"], "support", None),
    )
    if (
        support is None
        or hasattr(site["fn"], "_mask")
        or any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves((value, support)))
    ):
        return False
    refuse_nan(site["name"], value)
    with jax.ensure_compile_time_eval():
        inside = np.asarray(support(np.asarray(value)))
    if not inside.all():
        where = tuple(np.argwhere(~inside)[0].tolist())
        raise TargetError(
            f"The data at site {site['name']!r} are not inside the support of its"
            f" {type(site['fn']).__name__}: the first at index {where} is"
            f" {np.asarray(value)[where]}. Correct the data, or choose another distribution."
        )
    return True


def _classified(
    sites: dict[str, Site], subsampled: dict[str, int], data: dict[int, Any]
) -> dict[str, Any]:
    """The fields of an Inspection that the trace shows."""
    by_type = {name: site["type"] for name, site in sites.items()}
    mutable = [name for name, kind in by_type.items() if kind == "mutable"]
    if mutable:
        raise TargetError(
            f"Site {mutable[0]!r} is numpyro.mutable: the log density would change from call to"
            " call. Pass what it holds as an argument of the model."
        )
    observed = [
        s for s in sampled(sites) if s["is_observed"] and not s["infer"].get("is_auxiliary")
    ]
    latent = [site for site in sampled(sites) if not site["is_observed"]]
    if not latent:
        raise TargetError(
            "The model has no latent site: everything in it is observed, so there is nothing to"
            " infer."
        )
    halves = [
        name
        for name in by_type
        if name.endswith("_unobserved") and f"{name[:-10]}observed" in by_type
    ]
    if halves:
        raise TargetError(
            f"Site {halves[0][:-11]!r} uses obs_mask, which makes a latent value for every datum"
            " and leaves those of observed data without a density. Mask the missing data with"
            " numpyro.handlers.mask instead, or make them a site of their own."
        )
    live = tuple(site["name"] for site in latent if _is_live(site))
    return {
        "blocks": {site["name"]: _block(site, site["name"] in live) for site in latent},
        "live": live,
        "observed": tuple(site["name"] for site in observed),
        "masked": tuple(site["name"] for site in observed if hasattr(site["fn"], "_mask")),
        "unchecked": tuple(site["name"] for site in observed if not _checked(site, data)),
        "deterministic": tuple(name for name, kind in by_type.items() if kind == "deterministic"),
        "params": tuple(name for name, kind in by_type.items() if kind == "param"),
        "local": tuple(
            (s["name"], frame.dim - s["fn"].event_dim)
            for s in latent
            for frame in s["cond_indep_stack"]
            if frame.name in subsampled
        ),
    }


def _is_live(site: Site) -> bool:
    return any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(site["fn"].support))


def _block(site: Site, live: bool) -> Block:
    shape, support = jnp.shape(site["value"]), site["fn"].support
    if live:
        return Block(site["name"], tuple(bijection(support).inverse_shape(shape)))
    return Block(site["name"], shape, normalised(support))
