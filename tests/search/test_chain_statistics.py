"""R-hat and effective sample sizes against ArviZ, and against processes that are known."""

import numpy as np
import pytest

from tightbound.search.chain_statistics import MixingLimits, ess_bulk, ess_mean, ess_tail, rhat


def autoregression(phi, shape, seed=0):
    """x_t = phi x_t-1 + noise with unit variance, `[C, n, P]`.

    Integrated autocorrelation time (1 + phi) / (1 - phi).
    """
    noise = np.random.default_rng(seed).standard_normal(shape)
    x = noise.copy()
    for t in range(1, shape[1]):
        x[:, t] = phi * x[:, t - 1] + np.sqrt(1 - phi**2) * noise[:, t]
    return x


@pytest.mark.parametrize("phi", [0.0, 0.6, -0.4])
def test_effective_sample_size_of_an_autoregression(phi):
    x = autoregression(phi, (4, 4000, 8))
    expected = 16_000 * (1 - phi) / (1 + phi)
    assert np.median(ess_mean(x)) == pytest.approx(expected, rel=0.1)
    assert np.median(ess_bulk(x)) == pytest.approx(expected, rel=0.1)


def test_rhat_of_shifted_and_of_stretched_chains():
    x = np.random.default_rng(1).standard_normal((4, 2000, 3))
    x[0, :, 1] += 1.0  # another location
    x[0, :, 2] *= 3.0  # another scale, the same location: only the folded ranks see it
    same, shifted, stretched = rhat(x)
    assert same < 1.01 < 1.05 < min(shifted, stretched)
    # basic R-hat^2 = 1 + variance of the split chains' means / variance within, for two of eight
    # shifted by 1 sd
    assert shifted == pytest.approx(np.sqrt(1 + 2 / 8 * 6 / 8 * 8 / 7), rel=0.05)


@pytest.mark.parametrize("n", [500, 501])
def test_the_same_numbers_as_arviz(n):
    stats = pytest.importorskip("arviz_stats", reason="comes with the extra for plots")
    x = autoregression(0.5, (3, n, 4), seed=2)
    x[..., 3] = np.round(x[..., 3])  # ties
    one = lambda f, **how: np.array(  # noqa: E731
        [f(x[..., j], chain_axis=0, draw_axis=1, **how) for j in range(4)]
    )
    np.testing.assert_allclose(rhat(x), one(stats.rhat), rtol=1e-12)
    np.testing.assert_allclose(ess_bulk(x), one(stats.ess, method="bulk"), rtol=1e-12)
    np.testing.assert_allclose(ess_mean(x), one(stats.ess, method="mean"), rtol=1e-12)
    np.testing.assert_allclose(
        ess_tail(x), one(stats.ess, method="tail", prob=(0.05, 0.95)), rtol=1e-12
    )


def test_limits_ask_for_agreement_and_for_effective_draws():
    agreeing = np.random.default_rng(3).standard_normal((4, 1000, 2))
    assert MixingLimits().met(agreeing)
    assert not MixingLimits(ess_per_chain=1000).met(agreeing)  # 8,000 of 4,000 draws
    assert not MixingLimits(rhat=0.99).met(agreeing)
    apart = agreeing + np.array([0.0, 0.0, 0.0, 1.0])[:, None, None]
    assert not MixingLimits().met(apart)
    assert MixingLimits(rhat=2.0, ess_per_chain=1).met(apart)
