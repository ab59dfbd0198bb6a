"""Student's t against SciPy, its draws' derivatives against differences of quantiles, and fits that
find it again.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats as st

import tightbound as tb
from tightbound.families import Gaussian, StudentT
from tightbound.families.student import gamma_of_normal
from tightbound.targets import zoo

ROOT = np.array([[2.0, 0.0], [1.0, 0.5]])
T = StudentT.around(Gaussian.from_root(np.array([1.0, -1.0]), ROOT), 4.0)


def quantile(a, noise):
    """The gamma quantile by SciPy, from the smaller tail."""
    return np.where(
        noise < 0, st.gamma.ppf(st.norm.cdf(noise), a), st.gamma.isf(st.norm.sf(noise), a)
    )


def test_gamma_quantiles_and_their_implicit_derivatives():
    a, noise = np.meshgrid([0.3, 0.5, 2.5, 5.0, 50.0, 1e4], [-6.0, -3.0, -1.0, 0.0, 1.0, 3.0, 6.0])
    np.testing.assert_allclose(
        jax.jit(gamma_of_normal)(jnp.asarray(a), jnp.asarray(noise)), quantile(a, noise), rtol=1e-10
    )
    in_a, in_noise = (
        np.asarray(
            jax.jit(jax.vmap(jax.grad(gamma_of_normal, i)))(
                jnp.asarray(a.ravel()), jnp.asarray(noise.ravel())
            )
        )
        for i in (0, 1)
    )
    h = 1e-5
    by_a = (quantile(a * (1 + h), noise) - quantile(a * (1 - h), noise)) / (2 * h * a)
    by_noise = (quantile(a, noise + h) - quantile(a, noise - h)) / (2 * h)
    np.testing.assert_allclose(in_a, by_a.ravel(), rtol=1e-5)
    np.testing.assert_allclose(in_noise, by_noise.ravel(), rtol=1e-5)


def test_density_moments_and_entropy():
    z = np.random.default_rng(0).standard_normal((6, 2)) * 5
    law = st.multivariate_t(T.loc, ROOT @ ROOT.T, df=4.0)
    np.testing.assert_allclose(T.log_prob_on_host(z), law.logpdf(z), rtol=1e-12)
    assert T.entropy() == pytest.approx(law.entropy(), rel=1e-9)
    np.testing.assert_allclose(T.sd, np.sqrt(2.0 * np.diag(ROOT @ ROOT.T)))
    np.testing.assert_array_equal(StudentT.diagonal(2, 1.5).sd, [np.inf, np.inf])
    assert np.isnan(StudentT.full(1, 1.0).mean).all()


def test_many_degrees_of_freedom_are_a_gaussian():
    gaussian = Gaussian.from_root(T.loc, ROOT)
    z = np.random.default_rng(1).standard_normal((6, 2))
    np.testing.assert_allclose(
        StudentT.around(gaussian, 1e6).log_prob_on_host(z), gaussian.log_prob_on_host(z), atol=1e-3
    )


def test_wrong_shapes_are_refused():
    with pytest.raises(ValueError, match="`df` must be positive, got 0.0"):
        StudentT.full(2, 0.0)
    with pytest.raises(ValueError, match=r"`loc` must have shape \[2\]"):
        StudentT(np.zeros(3), T.shape, 0.0)


@pytest.mark.slow
@pytest.mark.usefixtures("as_a_user")
def test_the_ladder_turns_caution_into_pass_on_heavy_tails():
    """A t with five degrees of freedom: a Gaussian cannot pass, the Student-t rung finds it."""
    known = zoo.student_t(3, df=5.0)
    fit = tb.fit(known.target)
    assert isinstance(fit.q, StudentT)
    assert fit.certificate.verdict == "pass", str(fit.certificate)
    assert fit.q.df == pytest.approx(5.0, rel=0.15)
    assert fit.elbo.value == pytest.approx(known.log_evidence, abs=0.02)
    rows = fit.summary()
    np.testing.assert_allclose(rows["sd"], np.ravel(known.sd["x"]), rtol=0.08)
    assert "StudentT" in fit.rung
