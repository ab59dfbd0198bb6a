"""Implicit reparameterisation: gradients of divergences.

The library's own gamma, beta and Dirichlet are in the battery.
"""

from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import jax.scipy.special as jsp
import jax.scipy.stats as jst
import numpy as np
import pytest

from tightbound._numerics import to_device
from tightbound.estimators import Pathwise
from tightbound.families import AbstractFamily, Gaussian, implicit
from tightbound.objectives import ELBO
from tightbound.testing import GaussianTarget


class Drawn(AbstractFamily):
    """A family of one parameter vector whose draws come from jax.random."""

    raw: jax.Array
    dim: ClassVar = 1

    @property
    def positive(self):
        return jnp.exp(self.raw)


class Gamma(Drawn):
    """Shape and rate.

    The draw is differentiated through the distribution function, not by JAX's own rule.
    """

    def _sample(self, key, x=None):
        shape, rate = self.positive
        z = jr.gamma(key, jax.lax.stop_gradient(shape), (1,)) / rate
        return implicit(
            z,
            lambda z: jsp.gammainc(shape, rate * z),
            lambda z: jst.gamma.logpdf(z, shape, scale=1 / rate),
        )

    def _log_prob(self, z, x=None):
        shape, rate = self.positive
        return jst.gamma.logpdf(z[0], shape, scale=1 / rate)


class StudentT(Drawn):
    """Degrees of freedom and scale."""

    def _sample(self, key, x=None):
        df, scale = self.positive
        return scale * jr.t(key, df, (1,))

    def _log_prob(self, z, x=None):
        df, scale = self.positive
        return jst.t.logpdf(z[0] / scale, df) - jnp.log(scale)


class Same(GaussianTarget):
    """Another member of q's family, as a target."""

    member: Drawn = None

    def log_density(self, z):
        return self.member._log_prob(z)


def kl_gamma(q, p):
    (a, r), (b, s) = q.positive, p.positive
    return (
        (a - b) * jsp.digamma(a)
        - jsp.gammaln(a)
        + jsp.gammaln(b)
        + b * (jnp.log(r) - jnp.log(s))
        + a * (s - r) / r
    )


def kl_student(q, p):
    """The truth by quadrature.

    Trapezia in t = scale tan(u), whose error is exponentially small for these smooth tails.
    """
    u = (jnp.arange(20_000.0) + 0.5) / 20_000 * jnp.pi - jnp.pi / 2
    z, jacobian = jnp.tan(u), 1 / jnp.cos(u) ** 2
    log_q, log_p = (jax.vmap(m._log_prob)(z[:, None]) for m in (q, p))
    return jnp.sum(jnp.exp(log_q) * (log_q - log_p) * jacobian) * (jnp.pi / 20_000)


CASES = {
    "gamma by its distribution function": (
        Gamma(np.log([2.5, 1.5])),
        Gamma(np.log([1.2, 0.7])),
        kl_gamma,
    ),
    "Student-t": (StudentT(np.log([5.0, 1.5])), StudentT(np.log([3.0, 0.9])), kl_student),
}


@pytest.mark.slow
@pytest.mark.parametrize(("q", "p", "kl"), CASES.values(), ids=CASES)
def test_pathwise_gradient_is_that_of_the_divergence(q, p, kl):
    """2,000 keys of 8 draws; within 4 standard errors."""
    q, p = to_device((q, p))
    target = Same(Gaussian.full(1), 0.0, p)
    truth = eqx.filter_grad(lambda q: kl(q, p))(q).raw
    one = eqx.filter_grad(lambda q, key: Pathwise(8).surrogate(ELBO(), target, q, None, key)[0])
    estimates = np.asarray(
        eqx.filter_jit(jax.vmap(lambda key: one(q, key).raw))(jr.split(jr.key(5), 2000))
    )
    error = estimates.std(0, ddof=1) / np.sqrt(2000)
    assert np.all(np.abs(estimates.mean(0) - truth) < 4 * error)
    assert np.all(error < 0.05)
