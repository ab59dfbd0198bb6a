"""The battery of families that are conditioned on data."""

from collections.abc import Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Float
from scipy.special import logsumexp

from .._numerics import as_key, scoped, to_device
from .._types import Array, Key, PyTree
from ..families.conditional import Conditional, Conditioned, Ensemble
from .comparisons import close, refuses
from .families import check_quadrature, independent_draws


@scoped
def check_conditional(
    q: Conditional | Ensemble, xs: Sequence[PyTree], key: Key, *, draws: int = 4000
) -> None:
    """At each of some data sets a density that integrates to one, and draws that follow it.

    That is the density of `q.at(x)`, and the equal mixture of the networks'; it depends on x, and
    is refused without it. What q.at(x) shares with families that need no data (gradients, steps) is
    for `check_family(q.at(x), key)`.

    Arguments:
        q: of one or two dimensions.
        xs: data sets, at least two.
        key: of all draws.
        draws: from which the comparisons are made.
    """
    name, key = type(q).__name__, as_key(key)
    # The same points at each x: draws at the first of them
    probes, densities = np.empty((0, q.dim)), []
    for i, x in enumerate(xs):
        member, k = q.at(x), jr.fold_in(key, i)
        z = independent_draws(member, k, draws)
        check_quadrature(member, name, {"sample": z})
        probes = z[:3] if i == 0 else probes
        log_q, of_member, each, draw, of_member_draw = _looked_at(
            *to_device((q, member), q.dtype), jnp.asarray(probes), x, k
        )
        close(
            of_member,
            log_q,
            1e-10,
            f"{name}: `at(x)` has another density than `log_prob(z, x)`.",
        )
        close(
            of_member_draw,
            draw,
            1e-10,
            f"{name}: `at(x)` makes another draw than `sample(key, x)`.",
        )
        close(
            log_q,
            logsumexp(each, axis=0) - np.log(len(each)),
            1e-10,
            f"{name}: the density is not the mean of those of its networks.",
        )
        densities.append(np.asarray(log_q))
    assert np.ptp(np.stack(densities), axis=0).min() > 0, f"{name}: the density ignores x."
    refuses(lambda: q.sample(key), ValueError, f"{name}: a draw needs no data.")
    _check_batch(q, name, xs, probes, np.stack(densities))


@eqx.filter_jit
def _looked_at(
    q: Conditional | Ensemble,
    member: Conditioned,
    z: Float[jax.Array, "n dim"],
    x: PyTree,
    key: jax.Array,
) -> tuple[
    Float[Array, "n"],
    Float[Array, "n"],
    Float[Array, "networks n"],
    Float[Array, "dim"],
    Float[Array, "dim"],
]:
    """Densities of q at x, of its member at x and of all its networks; a draw of both."""
    each = jnp.stack([network.log_prob(z, x) for network in q.members])
    return q.log_prob(z, x), member.log_prob(z), each, q.sample(key, x), member.sample(key)


def _check_batch(
    q: Conditional | Ensemble,
    name: str,
    xs: Sequence[PyTree],
    z: Float[np.ndarray, "n dim"],
    densities: Float[np.ndarray, "x n"],
) -> None:
    """After flattening, under jit, and with vmap over data sets, the same log densities."""
    leaves, structure = jax.tree.flatten(to_device(q, q.dtype))
    again = jax.tree.unflatten(structure, leaves)
    batch = jax.tree.map(lambda *leaves: jnp.stack(list(map(jnp.asarray, leaves))), *xs)
    found = eqx.filter_jit(jax.vmap(lambda x: jax.vmap(lambda v: again._log_prob(v, x))(z)))(batch)
    close(found, densities, 1e-10, f"{name}: jit, or vmap over data sets, changes the density.")
