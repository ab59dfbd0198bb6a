"""What a NumPyro model shows when it is traced once, on shapes alone."""

from typing import NamedTuple, TypedDict, cast

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Shaped

from .._types import Array, PyTree
from ..results import TargetError
from .layout import Block
from .numpyro_program import Program, Site, log_prob, plate_indices, sampled, start_values
from .support import Constraint, bijection, normalised
from .tracing import trace


class Classified(TypedDict):
    """The fields of an Inspection that the sites alone show."""

    blocks: dict[str, Block]
    live: tuple[str, ...]
    observed: tuple[str, ...]
    masked: tuple[str, ...]
    unchecked: tuple[str, ...]
    deterministic: tuple[str, ...]
    params: tuple[str, ...]
    local: tuple[tuple[str, int], ...]


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
    constants: list[PyTree]


def inspect(program: Program) -> Inspection:
    """Trace the model once, on shapes alone; call inside `x64()`.

    Raises:
        TargetError: for a site that cannot become coordinates of R^d, by name.
    """
    # Filled while the trace runs, because a traced function can only return arrays
    found: list[Classified] = []
    subsampled: dict[str, int] = {}

    def on_plate(site: Site) -> jax.Array | None:
        if site["type"] == "plate" and site["args"][1] not in (None, site["args"][0]):
            subsampled[site["name"]] = site["args"][0]
        return plate_indices(site, {})

    def log_density(traced, origin):
        sites = eqx.combine(traced, static).explored(start_values(origin), on_plate)
        data = {
            id(t): array
            for t, array in zip(jax.tree.leaves(traced), jax.tree.leaves(arrays), strict=True)
        }
        found.append(_classified(sites, subsampled, data))
        return jnp.asarray(sum(jnp.sum(log_prob(site)) for site in sampled(sites)))

    arrays, static = eqx.partition(program, lambda leaf: isinstance(leaf, (np.ndarray, jax.Array)))
    traced = trace(log_density, arrays, jax.ShapeDtypeStruct((), np.float64))
    return Inspection(
        **found[-1],
        subsampled=subsampled,
        returns_float32=traced.returns_float32,
        constants=traced.constants,
    )


def refuse_nan(name: str, data: Shaped[Array, "..."] | float) -> None:
    """Raise a TargetError that names the site when its data contain NaN."""
    if has_nan(data):
        where = np.argwhere(np.isnan(data))
        raise TargetError(
            f"The data at site {name!r} have {len(where)} NaN among {np.size(data)} values, the"
            f" first at index {tuple(where[0].tolist())}. Drop them, make them a latent site, or"
            " mask them: with numpyro.handlers.mask(mask=~np.isnan(data))."
        )


def has_nan(leaf: object) -> bool:
    """Whether `leaf` is a floating array or number with NaN in it."""
    if isinstance(leaf, Tracer) or not isinstance(leaf, (np.ndarray, np.generic, jax.Array, float)):
        return False
    dtype = getattr(leaf, "dtype", np.dtype(float))
    return bool(jnp.issubdtype(dtype, jnp.floating) and np.isnan(np.asarray(leaf)).any())


def _checked(site: Site, data: dict[int, Array]) -> bool:
    """Whether the data at a site are known; if so, they are inside the support.

    `data` has the arrays behind the tracers that stand for the model's arguments, by the id of the
    tracer.
    """
    value = data.get(id(site["value"]), site["value"])
    support = getattr(site["fn"], "support", None)
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
    sites: dict[str, Site], subsampled: dict[str, int], data: dict[int, Array]
) -> Classified:
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
    # `start_values` has refused sites without a support
    shape, support = jnp.shape(site["value"]), cast(Constraint, site["fn"].support)
    if live:
        return Block(site["name"], tuple(bijection(support).inverse_shape(shape)))
    return Block(site["name"], shape, normalised(support))
