"""Draws that stand for a distribution: what a sampler returns as q."""

from typing import ClassVar, NoReturn

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Float, Shaped

from .._numerics import host_rng
from .._types import Array, Key, PyTree, Validated
from ..results import PairingError
from .base import AbstractFamily
from .scales import as_floating


class Empirical(AbstractFamily):
    """The draws of C chains, n from each, every one of them with the same weight.

    What `tb.solvers.NUTS` and the other samplers return as `fit.q`. It has moments, quantiles and
    draws, and no density, so importance weights, an ELBO and bounds on the evidence cannot be had
    from it: `tb.check` judges it as chains instead (R-hat, effective sample size, divergences). Not
    something to optimise.

    Attributes:
        draws: in the order in which each chain made them, without the warm-up.
        statistics: what the sampler noted of each draw, by name, each `[chains, n]`: `lp` (log
            density, nats), `acceptance_rate` and `diverging` where the sampler has them.
    """

    draws: Float[Array, "chains n dim"] = eqx.field(converter=as_floating)
    statistics: dict[str, Validated[Shaped[Array, "chains n"], "__check_init__"]] = eqx.field(
        default_factory=dict
    )
    reparameterised: ClassVar[bool] = False
    has_density: ClassVar[bool] = False

    def __check_init__(self) -> None:
        for name, value in self.statistics.items():
            if np.shape(value) != np.shape(self.draws)[:2]:
                raise ValueError(
                    f"Empirical: `statistics[{name!r}]` must have one number per draw,"
                    f" {np.shape(self.draws)[:2]}, got shape {np.shape(value)}."
                )

    @property
    def dim(self) -> int:
        return self.draws.shape[-1]

    @property
    def chains(self) -> int:
        """The number of chains."""
        return self.draws.shape[0]

    @property
    def flat(self) -> Float[Array, "draws dim"]:
        """All draws, chain after chain."""
        return self.draws.reshape((-1, self.dim))

    @property
    def mean(self) -> Float[Array, "dim"]:
        """Average of the draws."""
        return self.flat.mean(axis=0)

    @property
    def sd(self) -> Float[Array, "dim"]:
        """Standard deviation of the draws."""
        return self.flat.std(axis=0)

    @property
    def cov(self) -> Float[Array, "dim dim"]:
        """Covariance of the draws."""
        centred = self.flat - self.mean
        return centred.T @ centred / len(centred)

    def draw(self, n: int, key: Key) -> tuple[Float[np.ndarray, "n dim"], Float[np.ndarray, "n"]]:
        """`n` of the draws in random order, none twice before each came once.

        Their log densities are NaN: unknown.
        """
        flat = np.asarray(self.flat)
        rng = host_rng(key, "empirical")
        rounds = [rng.permutation(len(flat)) for _ in range(-(-n // len(flat)))]
        return flat[np.concatenate(rounds)[:n]], np.full(n, np.nan)

    def log_prob_on_host(self, z: Float[np.ndarray, "n dim"]) -> NoReturn:
        _no_density()

    def _sample(self, key: jax.Array, x: PyTree = None) -> Float[Array, "dim"]:
        flat = jnp.asarray(self.flat)
        return flat[jr.randint(key, (), 0, len(flat))]

    def _log_prob(self, z: Float[Array, "dim"], x: PyTree = None) -> NoReturn:
        _no_density()


def _no_density() -> NoReturn:
    raise PairingError(
        "Empirical holds draws and has no density. For one, fit a family to the same target and"
        " start it from these draws: tb.fit(target, fit.q)."
    )


__all__ = ["Empirical"]
