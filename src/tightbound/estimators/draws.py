"""What every estimator that draws from q shares: its noise, and what is evaluated at draws."""

from collections.abc import Callable
from typing import Literal, Protocol, TypeAlias, cast, get_args

import jax
import jax.numpy as jnp
import jax.random as jr
import jax.scipy.special
import numpy as np
from jaxtyping import Float, UInt32

from .._numerics import host_rng
from .._types import Array, Key, PyTree
from ..families.base import AbstractFamily
from ..objectives.base import AbstractObjective, Draws
from ..results import PairingError
from ..targets.base import Density, Joint
from .base import Evaluable

Noise = Literal["independent", "antithetic", "sobol"]
"""Which standard normals the draws are made of.

`independent`: the textbook. `antithetic`: each draw with its mirror image, which removes the noise
of everything odd (the mean's gradient on a Gaussian target has none left). `sobol`: randomised
quasi-Monte Carlo, scrambled Sobol points under a fresh random digital shift at each step; error
falls nearly as 1/n for smooth integrands (Owen 1997; for variational inference Buchholz, Wenzel &
Mandt 2018). All three are unbiased.
"""

Points: TypeAlias = UInt32[Array, "n noise"] | None
"""Scrambled Sobol points as integers; None for noise of another kind."""

# scipy.stats.qmc.Sobol.MAXDIM; importing it here would slow `import tightbound`
_SOBOL_DIMS = 21201
_BITS = 32  # of a Sobol point: a digital shift is then one exclusive or of 32-bit integers


def check_noise(noise: str, n: int, part: str) -> None:
    """Refuse a noise that does not exist, or a number of draws that it cannot have (ValueError)."""
    if noise not in get_args(Noise):
        raise ValueError(
            f"{part}: `noise` must be one of {', '.join(map(repr, get_args(Noise)))}, got"
            f" {noise!r}."
        )
    if n < 1:
        raise ValueError(f"{part}: `n` must be at least 1, got {n}.")
    if noise == "antithetic" and n % 2:
        raise ValueError(f"{part}: antithetic draws come in pairs, so `n` must be even, got {n}.")
    if noise == "sobol" and n & (n - 1):
        raise ValueError(
            f"{part}: Sobol points are balanced only in powers of 2, so `n` must be one, got {n}."
        )


def check_draws(
    noise: str, n: int, part: str, q: AbstractFamily, objective: AbstractObjective | None
) -> None:
    """Refuse a family or an objective that `n` draws of this noise cannot serve (PairingError)."""
    if noise != "independent" and q.noise_dim is None:
        raise PairingError(
            f"{part} with {noise} noise needs draws that are a function of standard normals, which"
            f' {type(q).__name__}\'s are not; use noise="independent".'
        )
    if noise == "sobol" and q.noise_dim is not None and q.noise_dim > _SOBOL_DIMS:
        raise PairingError(
            f"{part}: Sobol points have at most {_SOBOL_DIMS} coordinates, q needs {q.noise_dim};"
            ' use "antithetic".'
        )
    group = 1 if objective is None else objective.group
    unit = 2 * group if noise == "antithetic" else group
    if n % unit:
        raise PairingError(
            f"{type(objective).__name__} takes draws in groups of {group}, so {part} needs a"
            f" multiple of {unit} {noise} draws, got n={n}."
        )


def prepare_noise(noise: str, n: int, q: AbstractFamily, key: Key) -> Points:
    """What stays fixed over a run: for Sobol noise its scrambled points, else nothing."""
    return prepare_points(noise, n, q.noise_dim, key)


def prepare_points(noise: str, n: int, dim: int | None, key: Key) -> Points:
    """`prepare_noise` for any number of normals per draw."""
    if noise != "sobol" or dim is None:  # `check` refuses Sobol noise to a family without normals
        return None
    from scipy.stats import qmc

    engine = qmc.Sobol(dim, bits=_BITS, rng=host_rng(key, "sobol"))
    return jnp.asarray(np.floor(engine.random(n) * 2.0**_BITS).astype(np.uint32))


def draw(
    q: AbstractFamily, noise: str, points: Points, n: int, group: int, key: jax.Array
) -> Float[Array, "n dim"]:
    """`n` draws, differentiable in q.

    Each run of `group` consecutive draws is independent within itself.
    """
    if q.noise_dim is None:
        return jax.vmap(q._sample)(jr.split(key, n))
    return jax.vmap(q._from_noise)(noise_of(noise, points, n, group, q.noise_dim, q.dtype, key))


def noise_of(
    noise: str, points: Points, n: int, group: int, dim: int, dtype: np.dtype, key: jax.Array
) -> Float[Array, "n noise"]:
    """`n` rows of `dim` standard normals of the given kind."""
    return _NOISES[noise](points, n, group, dim, dtype, key)


def _independent(
    points: Points, n: int, group: int, dim: int, dtype: np.dtype, key: jax.Array
) -> Float[Array, "n noise"]:
    return jr.normal(key, (n, dim), dtype)


def _antithetic(
    points: Points, n: int, group: int, dim: int, dtype: np.dtype, key: jax.Array
) -> Float[Array, "n noise"]:
    # A draw and its mirror image lie n/2 apart, hence in different groups: IWELBO stays exactly the
    # bound that it names.
    half = jr.normal(key, (n // 2, dim), dtype)
    return jnp.concatenate([half, -half])


def _sobol(
    points: Points, n: int, group: int, dim: int, dtype: np.dtype, key: jax.Array
) -> Float[Array, "n noise"]:
    assert points is not None
    # The members of a group come from independently shifted copies of the points, for the same
    # reason.
    shifts = jr.bits(key, (1, group, dim), jnp.uint32)
    shifted = jnp.asarray(points)[: n // group, None, :] ^ shifts
    uniform = (shifted.reshape((n, dim)).astype(dtype) + 0.5) * 0.5**_BITS
    half_ulp = 0.5 * float(jnp.finfo(dtype).eps)  # in float32 the largest integers round up to 1
    return jax.scipy.special.ndtri(jnp.clip(uniform, 0.5 ** (_BITS + 1), 1.0 - half_ulp))


_NOISES: dict[str, Callable[[Points, int, int, int, np.dtype, jax.Array], Array]] = {
    "independent": _independent,
    "antithetic": _antithetic,
    "sobol": _sobol,
}


def evaluate(
    objective: AbstractObjective, target: Evaluable, q: AbstractFamily, z: Float[Array, "n dim"]
) -> Draws:
    """Everything that `objective` needs at the draws, with log q that of the `q` given here."""
    log_p = log_p_of(target, q)
    fields: dict[str, Callable[[jax.Array], Array]] = {
        "log_p": log_p,
        "log_q": q._log_prob,
        "score_p": jax.grad(log_p),
        "score_q": jax.grad(q._log_prob),
    }
    values = {name: jnp.asarray(jax.vmap(fields[name])(jnp.asarray(z))) for name in objective.needs}
    return Draws(values.pop("log_p", None), values.pop("log_q"), **values)


class _Native(Protocol):
    """A family of `space` "native": it names the numbers of its draws."""

    def values(self, z: Float[Array, "dim"]) -> PyTree: ...


def log_p_of(
    target: Evaluable, q: AbstractFamily
) -> Callable[[Float[Array, "dim"]], Float[Array, ""]]:
    """log p as a function of one flat draw `[dim]` of q, in the space where q lives."""
    # `AbstractEstimator.check` has refused a target without the ability that q's space asks for.
    if q.space == "native":
        joint, native = cast(Joint, target), cast(_Native, q)
        return lambda z: joint.log_joint(native.values(z))
    return cast(Density, target).log_density


def check_scores(part: str, objective: AbstractObjective | None, instead: str) -> None:
    """Refuse an objective that needs derivatives in z, which discrete draws lack (PairingError)."""
    if objective is not None and "score_p" in objective.needs:
        raise PairingError(
            f"{type(objective).__name__} compares derivatives in z, which the discrete draws of"
            f" {part} do not have; use {instead}."
        )


__all__ = [
    "Noise",
    "Points",
    "check_draws",
    "check_noise",
    "check_scores",
    "draw",
    "evaluate",
    "log_p_of",
    "noise_of",
    "prepare_noise",
    "prepare_points",
]
