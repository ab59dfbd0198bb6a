"""Renyi divergences: bounds on the evidence from below (Renyi, VRIWAE) and above (ChiUpper)."""

import math
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Float

from .._types import Array, Scalar
from ..families.base import AbstractFamily
from ..families.gaussian import Gaussian
from ..targets.base import AbstractTarget
from .base import AbstractObjective, Draws, Source
from .classic import grouped
from .closed_forms import gaussian_pair


class Renyi(AbstractObjective):
    """The variational Renyi bound: loss = -(1 - alpha)^-1 log E_q[w^(1 - alpha)], nats.

    The loss is D_alpha(q || posterior) - log Z, w = p / q. Its negative falls from log Z at
    alpha = 0 through the ELBO (alpha -> 1) and below it: with a small alpha the optimal q covers
    the posterior's mass, with a large one it keeps to a mode. The logarithm stands outside the
    average, so the loss of n draws, and its gradient, have a bias of order 1/n towards the ELBO:
    use many draws, or VRIWAE, which is an expectation for any number. Not for high dimension with
    alpha far from 1: few weights then decide everything.

    Source: Li & Turner 2016, eqs. 6 and 8.

    Attributes:
        alpha: positive and not 1, where it would be the ELBO; negative orders give upper bounds,
            see ChiUpper.
    """

    alpha: float = eqx.field(static=True)
    drawn_from: ClassVar[Source] = Source.q
    averages: ClassVar[bool] = False

    def __check_init__(self) -> None:
        _check_alpha("Renyi", self.alpha)

    def loss(self, draws: Draws) -> Float[Array, ""]:
        power = 1.0 - self.alpha
        return -draws.log_average(power * draws.log_w) / power

    def exact(self, target: AbstractTarget, q: AbstractFamily) -> Scalar | None:
        pair = gaussian_pair(target, q)
        if pair is None:
            return None
        posterior, q, log_evidence = pair
        power = 1.0 - self.alpha
        return -log_power_integral(posterior, q, power) / power - log_evidence


class VRIWAE(AbstractObjective):
    """The Renyi bound of k draws: loss = -(1 - alpha)^-1 E log (1/k) sum of w_i^(1 - alpha), nats.

    An expectation over groups of k draws, hence with unbiased gradients. alpha = 0 is IWELBO(k),
    alpha -> 1 or k = 1 the ELBO, k -> inf the Renyi bound; in between alpha trades the bound's
    tightness for less noise in its gradient. Never above the evidence. Not a divergence at finite
    k: its optimum moves with k.

    Source: Daudel, Benton, Shi & Doucet 2023, eq. 5.

    Attributes:
        alpha: from 0 up to (not including) 1.
        k: draws per term of the bound.
    """

    alpha: float = eqx.field(static=True)
    k: int = eqx.field(static=True)
    drawn_from: ClassVar[Source] = Source.q

    def __check_init__(self) -> None:
        if not 0 <= self.alpha < 1:
            raise ValueError(
                f"VRIWAE: `alpha` must lie in [0, 1), got {self.alpha}; alpha = 1 is ELBO()."
            )
        if self.k < 1:
            raise ValueError(f"VRIWAE: `k` must be at least 1, got {self.k}.")

    @property
    def group(self) -> int:
        return self.k

    def loss(self, draws: Draws) -> Float[Array, ""]:
        power = 1.0 - self.alpha
        groups = grouped(power * draws.log_w, self.k, f"VRIWAE({self.alpha:g}, {self.k})")
        return -draws.average(jax.nn.logsumexp(groups, axis=1) - math.log(self.k)) / power


class ChiUpper(AbstractObjective):
    """The chi upper bound on the evidence: loss = (1 / order) log E_q[w^order] >= log Z, nats.

    w = p / q. With an ELBO it brackets log Z; minimised, it makes a q that is wide enough for
    importance sampling. The bound holds for the expectation: from n draws it lies too low, by much
    where q is narrower than p (for a Gaussian it is infinite when order / var_p <= (order - 1) /
    var_q), and only many draws of a wide q show a true one. Not for high dimension.

    Source: Dieng, Tran, Ranganath, Paisley & Blei 2017, eq. 4 (CUBO).

    Attributes:
        order: above 1; 2 is the chi-square divergence.
    """

    order: float = eqx.field(default=2.0, static=True)
    drawn_from: ClassVar[Source] = Source.q
    averages: ClassVar[bool] = False

    def __check_init__(self) -> None:
        if not self.order > 1:
            raise ValueError(
                f"ChiUpper: `order` must be above 1 for an upper bound, got {self.order}."
            )

    def loss(self, draws: Draws) -> Float[Array, ""]:
        return draws.log_average(self.order * draws.log_w) / self.order

    def exact(self, target: AbstractTarget, q: AbstractFamily) -> Scalar | None:
        pair = gaussian_pair(target, q)
        if pair is None:
            return None
        posterior, q, log_evidence = pair
        return log_power_integral(posterior, q, self.order) / self.order + log_evidence


def log_power_integral(p: Gaussian, q: Gaussian, power: float) -> Float[Array, ""]:
    """log of the integral of p^a q^(1 - a), a = `power`, nats; infinite where it diverges.

    With P, Q their precisions, L = a P + (1 - a) Q and d the difference of the means,
    (a log|P| + (1 - a) log|Q| - log|L| - a (1 - a) d' P L^-1 Q d) / 2.

    Source: Gil, Alajaji & Linder 2013, table 2 (multivariate Gaussians).
    """
    first, second = jnp.linalg.inv(jnp.asarray(p.cov)), jnp.linalg.inv(jnp.asarray(q.cov))
    mixed, shift = power * first + (1 - power) * second, p.mean - q.mean
    log_dets = [jnp.linalg.slogdet(matrix)[1] for matrix in (first, second, mixed)]
    pull = (first @ shift) @ jnp.linalg.solve(mixed, second @ shift)
    value = 0.5 * (
        power * log_dets[0] + (1 - power) * log_dets[1] - log_dets[2] - power * (1 - power) * pull
    )
    # a > 1 subtracts q's precision: where the rest is not positive definite the integrand grows,
    # and the formula above would give a finite number all the same.
    return jnp.where(jnp.linalg.eigvalsh(mixed)[0] > 0, value, jnp.inf)


def _check_alpha(name: str, alpha: float) -> None:
    if not alpha > 0:
        raise ValueError(
            f"{name}: `alpha` must be positive, got {alpha}; for an upper bound use"
            " ChiUpper(order=1 - alpha)."
        )
    if alpha == 1:
        raise ValueError(
            f"{name}: `alpha` = 1 is the limit in which the bound is the ELBO; use ELBO()."
        )


__all__ = ["VRIWAE", "ChiUpper", "Renyi", "log_power_integral"]
