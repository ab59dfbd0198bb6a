"""The battery of targets that can only be simulated."""

from collections.abc import Callable, Mapping
from typing import Protocol, runtime_checkable

import jax
import jax.random as jr
import numpy as np
import scipy.stats
from jaxtyping import Float

from .._numerics import as_key, scoped
from .._types import Array, Key, PyTree
from ..targets.base import Simulator
from .comparisons import LEAST_P, close


@runtime_checkable
class _Law(Protocol):
    """A distribution of SciPy's: its distribution function is what is needed."""

    def cdf(self, x: Float[np.ndarray, "n"]) -> Float[np.ndarray, "n"]: ...


@scoped
def check_simulator(
    target: Simulator,
    key: Key,
    *,
    prior: Mapping[str, _Law],
    residual: Callable[[PyTree, PyTree], Float[Array, "_"]],
    draws: int = 4000,
) -> None:
    """Draws follow the prior and the law of the data given them; values and coordinates invert.

    Arguments:
        target: its parameters are named scalars.
        key: of the draws.
        prior: the law of each parameter.
        residual: `residual(values, x)`, numbers that are independent and standard normal where x is
            drawn given the values.
        draws: from which the comparisons are made.
    """
    name = type(target).__name__
    z, x = jax.jit(jax.vmap(target.draw))(jr.split(as_key(key), draws))
    assert z.shape == (draws, target.dim), f"{name}: a draw has the shape {z.shape[1:]}."
    assert len(target.coordinate_names) == target.dim, f"{name}: names and coordinates differ."
    values = jax.vmap(target.constrain)(z)
    back = jax.vmap(target.unconstrain)(values)
    close(back, z, 1e-6, f"{name}: `unconstrain` does not invert `constrain`.")
    for i, circular in enumerate(target.circular):
        inside = not circular or np.abs(np.asarray(z)[:, i]).max() <= np.pi
        assert inside, f"{name}: {target.coordinate_names[i]} is an angle outside [-pi, pi]."
    for parameter, law in prior.items():
        p = scipy.stats.kstest(np.asarray(values[parameter]), law.cdf).pvalue
        assert p > LEAST_P, f"{name}: {parameter!r} does not follow its prior (p-value {p:.1e})."
    noise = np.asarray(jax.vmap(residual)(values, x)).reshape(draws, -1)
    for i, column in enumerate(noise.T):
        p = scipy.stats.kstest(column, "norm").pvalue
        assert p > LEAST_P, f"{name}: number {i} of the data is off its law (p-value {p:.1e})."
    _check_stored(target, name, z)


def _check_stored(target: Simulator, name: str, z: Float[Array, "n dim"]) -> None:
    """Of stored simulations every draw is one."""
    if target.num_simulations is None:
        return
    stored, _ = target.take(np.arange(target.num_simulations))
    known = {tuple(row) for row in np.asarray(stored).tolist()}
    other = [row for row in np.asarray(z).tolist() if tuple(row) not in known]
    assert not other, f"{name}: {len(other)} draws are none of the stored simulations."
