"""The sinh-arcsinh warp.

Exactly the Gaussian at rest, known quantiles, and skewed posteriors that it fits.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats as st

import tightbound as tb
from tightbound.families import Gaussian, Warped
from tightbound.solvers import FixedNoise

GAUSSIAN = Gaussian.from_root(np.array([1.0, -2.0]), np.array([[2.0, 0.0], [1.0, 0.5]]))


def test_it_starts_at_the_gaussian_exactly():
    z = np.random.default_rng(0).standard_normal((5, 2)) * 4
    np.testing.assert_allclose(
        Warped.around(GAUSSIAN).log_prob_on_host(z), GAUSSIAN.log_prob_on_host(z), rtol=1e-12
    )
    np.testing.assert_allclose(
        Warped.around(GAUSSIAN).draw(6, 1)[0], GAUSSIAN.draw(6, 1)[0], rtol=1e-12
    )
    assert Warped.around(GAUSSIAN).penalty() == 0.0


def test_the_density_is_that_of_bent_normals():
    """In one coordinate P(z < S(u)) = Phi(u), of which the density is the derivative in S(u)."""
    q = Warped(Gaussian.diagonal(1).moved(np.array([3.0]), 2.0), np.array([0.6]), np.array([-0.3]))
    u = np.linspace(-4, 4, 9)
    tail = np.exp(-0.3)
    z = 3.0 + 2.0 * (np.sinh((np.arcsinh(u) + 0.6) / tail) - np.sinh(0.6 / tail))
    slope = 2.0 * np.cosh((np.arcsinh(u) + 0.6) / tail) / (tail * np.sqrt(1 + u**2))
    np.testing.assert_allclose(
        q.log_prob_on_host(z[:, None]), st.norm.logpdf(u) - np.log(slope), rtol=1e-10
    )
    assert np.all(np.isfinite(q.log_prob_on_host(np.array([[1e6], [-1e6]]))))
    with pytest.raises(ValueError, match=r"`skew` must have shape \[2\]"):
        Warped(GAUSSIAN, np.zeros(1), np.zeros(2))


@pytest.mark.usefixtures("as_a_user")
def test_a_warped_posterior_is_found_again():
    """The target is a member.

    The fit's ELBO is its log evidence, and its draws have the right quantiles.
    """
    truth = Warped(GAUSSIAN, np.array([0.5, -0.3]), np.array([0.0, -0.15]))
    target = tb.from_log_density(lambda p: truth._log_prob(p["z"]), {"z": np.zeros(2)})
    gaussian = tb.fit(target, solver=tb.solvers.NaturalGradient())
    fit = tb.fit(target, Warped.around(gaussian.q), solver=FixedNoise(pairs=512))
    assert gaussian.elbo.value < -0.1
    assert fit.elbo.value == pytest.approx(0.0, abs=0.01)
    assert fit.certificate.verdict == "pass", str(fit.certificate)
    expected = np.quantile(truth.draw(100_000, 0)[0], [0.05, 0.5, 0.95], axis=0).T
    spread = expected[:, 2] - expected[:, 0]
    error = np.abs(fit.summary()[["5%", "50%", "95%"]].to_numpy() - expected) / spread[:, None]
    assert error.max() < 0.03


@pytest.mark.usefixtures("as_a_user")
def test_fixed_noise_refuses_what_it_cannot_move():
    target = tb.from_log_density(lambda p: -0.5 * jnp.sum(p["z"] ** 2), {"z": np.zeros(2)})
    with pytest.raises(tb.PairingError, match="FixedNoise needs draws that are a smooth function"):
        tb.fit(target, tb.families.Mixture([GAUSSIAN]), solver=FixedNoise())
    with pytest.raises(
        tb.PairingError, match="FixedNoise maximises the ELBO and nothing else, got IWELBO"
    ):
        tb.fit(target, Warped.full(2), tb.objectives.IWELBO(2), FixedNoise())
    nowhere = tb.from_log_density(
        lambda p: jnp.where(p["z"][0] > 50.0, -p["z"][0], jnp.nan), {"z": np.full(2, 51.0)}
    )
    assert (
        tb.fit(nowhere, Warped.full(2), solver=FixedNoise(), throw=False).result
        is tb.Result.nonfinite
    )


@pytest.mark.usefixtures("as_a_user")
def test_a_second_fit_of_the_same_shapes_compiles_nothing():
    def target(shift):
        return tb.from_log_density(
            lambda p: -0.5 * jnp.sum((p["z"] - shift) ** 2), {"z": np.zeros(2)}
        )

    names = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, duration, **about: (
            names.append(about.get("fun_name"))
            if event.endswith("backend_compile_duration")
            else None
        )
    )
    for shift in (0.0, 0.5):
        seen = " ".join(map(str, names))
        names.clear()
        fit = tb.fit(target(shift), Warped.around(GAUSSIAN), solver=FixedNoise(pairs=100))
        np.testing.assert_allclose(fit.q.base.mean, shift, atol=0.05)
    assert "_pulled_back" in seen  # the first compiled it
    assert not any(
        mine in " ".join(map(str, names)) for mine in ("_draws", "_pulled_back", "_member")
    ), names
