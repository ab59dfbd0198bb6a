"""What can be wrong with a simulator, or with simulations: looked for before any training."""

from collections.abc import Callable, Mapping
from typing import TypeAlias

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Float

from .._numerics import to_host
from .._types import PyTree
from ..results import TargetError
from .layout import Layout, named_leaves
from .support import Support, as_constraint, describe, holds
from .tracing import UNTRACEABLE, explained

PriorDraw: TypeAlias = Callable[[jax.Array], PyTree]
"""`draw_prior(key)`: named values."""

Simulate: TypeAlias = Callable[[jax.Array, PyTree], PyTree]
"""`simulate(key, params)`: the data."""

_LOOKS = 256  # draws on which the functions are looked at before anything is trained
_WAY_OUT = (
    "Write it with jax.numpy and jax.random; or simulate outside JAX, as often as you can afford,"
    " and pass the draws: tb.from_simulations(params, x)."
)


def looks(draw_prior: PriorDraw, simulate: Simulate) -> tuple[PyTree, PyTree]:
    """256 draws of the parameters and of x, on the host.

    Raises:
        TargetError: one of the two functions cannot be used; the sentence says which, and why.
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
    # Other keys at the same parameters: what does not change then has no noise
    again = _mapped("simulate", simulate, others, params)
    if [a.shape for a in jax.tree.leaves(x)] != [a.shape for a in jax.tree.leaves(again)]:
        raise TargetError(
            "`simulate` returned data of different shapes in two calls. Its shapes must be fixed:"
            " pad to the longest, with a mask beside it, or reduce the data to summaries of a fixed"
            " length."
        )
    _check_data(x, again, params)
    return params, x


def _mapped(
    argument: str, function: Callable[..., PyTree], keys: jax.Array, *rest: PyTree
) -> PyTree:
    """The function at many keys, on the host, with errors that name it."""
    names = None if argument == "draw_prior" else list(named_leaves(rest[0], "params"))
    try:
        with explained(argument, names):
            out = jax.jit(jax.vmap(lambda k, *more: floating(function(k, *more))))(keys, *rest)
    except TargetError as error:
        if isinstance(error.__cause__, UNTRACEABLE):
            raise TargetError(
                f"JAX cannot trace `{argument}`. {_WAY_OUT}"
                f" {str(error).split('JAX said:')[-1].strip()}"
            ) from error
        raise
    if not jax.tree.leaves(out):
        raise TargetError(f"`{argument}` returned nothing; is its `return` missing?")
    return to_host(out)


def _check_data(x: PyTree, again: PyTree, params: PyTree) -> None:
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


def layout_of_params(
    params: PyTree, support: Mapping[str, Support] | None, argument: str
) -> tuple[Layout, tuple[bool, ...]]:
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


def _check_support(
    name: str, rows: Float[np.ndarray, "n ..."], support: Support, argument: str
) -> None:
    constraint = as_constraint(support, name, rows.shape[1:])
    for row in rows:
        if not holds(constraint, np.asarray(row)):
            raise TargetError(
                f"`{argument}` drew {name} ="
                f" {np.array2string(np.asarray(row), precision=4, threshold=8)}, which is outside"
                f" its support {describe(constraint)}. The support must be that of the prior:"
                " correct one of the two."
            )


def columns(tree: PyTree, argument: str) -> PyTree:
    """Leaves as float64 arrays with a leading axis.

    Raises:
        TargetError: they cannot be that, as a list of arrays of different lengths cannot.
    """
    # A list is one array written out, and not a container of arrays
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


def floating(tree: PyTree) -> PyTree:
    """Python numbers, integers and booleans as floating arrays."""
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.result_type(float)), tree)
