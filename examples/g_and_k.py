"""Tails and skew: the g-and-k distribution, trained once on simulations, checked, and refined for
one data set.

Run with `python examples/g_and_k.py`; takes about three minutes. The g-and-k distribution is easy
to draw from (a transformed normal) and awkward to evaluate (its density needs a root), which made
it a standard test of likelihood-free inference. Here the density is written down too, so that the
amortised answer can be compared with NUTS.
"""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np

import tightbound as tb

N = 100
C = 0.8
SUPPORT = {"b": "positive", "k": "positive"}


def quantile(z, p):
    """Q(z) of a standard normal z: location a, scale b, skewness g, heaviness of the tails k."""
    return p["a"] + p["b"] * (1 + C * jnp.tanh(0.5 * p["g"] * z)) * (1 + z**2) ** p["k"] * z


def draw_prior(key):
    """Location and log scale normal, g normal, k half-normal."""
    ka, kb, kg, kk = jr.split(key, 4)
    return {
        "a": 2.0 * jr.normal(ka),
        "b": jnp.exp(0.5 * jr.normal(kb)),
        "g": jr.normal(kg),
        "k": 0.4 * jnp.abs(jr.normal(kk)),
    }


def simulate(key, p):
    """N independent draws, sorted: the order says nothing, and sorted data suit a plain network."""
    return jnp.sort(quantile(jr.normal(key, (N,)), p))


def log_prior(p):
    """Of the same prior, up to a constant."""
    log_b = jnp.log(p["b"])
    return (
        -0.5 * (p["a"] / 2) ** 2
        - 2 * log_b**2
        - log_b
        - 0.5 * p["g"] ** 2
        - 0.5 * (p["k"] / 0.4) ** 2
    )


def log_likelihood(p, x):
    """Sum of log phi(z) - log Q'(z), Q(z) = x solved by bisection.

    One Newton step carries the derivatives.
    """
    low, high = jnp.full(x.shape, -12.0), jnp.full(x.shape, 12.0)

    def halve(_, ends):
        low, high = ends
        middle = 0.5 * (low + high)
        above = quantile(middle, jax.lax.stop_gradient(p)) > x
        return jnp.where(above, low, middle), jnp.where(above, middle, high)

    low, high = jax.lax.fori_loop(0, 45, halve, (low, high))
    z = jax.lax.stop_gradient(0.5 * (low + high))
    slope = jax.vmap(jax.grad(quantile), (0, None))
    z = z - (quantile(z, p) - x) / slope(z, p)
    return jnp.sum(-0.5 * z**2 - jnp.log(slope(z, p)))


def main(steps=None, chains=True):
    """Train, certify, calibrate, condition, refine."""
    target = tb.from_simulator(
        draw_prior, simulate, support=SUPPORT, log_prior=log_prior, log_likelihood=log_likelihood
    )  # fmt: skip
    fit = tb.fit(target, key=0) if steps is None else tb.fit(target, max_steps=steps, key=0)
    print(fit)
    print(fit.certificate)
    truth = {"a": 1.0, "b": 1.3, "g": 0.8, "k": 0.3}
    x = np.asarray(simulate(jr.key(7), truth))
    posterior = fit.at(x)
    print(
        "Amortised, at one data set:",
        posterior.summary(),
        posterior.certificate.explain(),
        sep="\n",
    )
    closer = tb.refine(posterior, "elbo", key=1)
    print("Refined by the ELBO:", closer.summary(), sep="\n")
    exact = tb.refine(posterior, "nuts", key=2) if chains else None
    if exact is not None:
        print("NUTS, started from it:", exact.summary(), sep="\n")
    return fit, posterior, closer, exact


if __name__ == "__main__":
    main()
