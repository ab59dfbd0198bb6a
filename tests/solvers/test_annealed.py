"""The paper's method: its numbers to the printed digits, and both rules."""

from pathlib import Path

import numpy as np
import pytest

import tightbound as tb
from tightbound._numerics import host_algebra, scoped
from tightbound.families import Gaussian
from tightbound.loop import run
from tightbound.objectives import ELBO
from tightbound.results import PairingError, Result
from tightbound.solvers import Annealed
from tightbound.targets import Clutter
from tightbound.testing import GaussianTarget

DATA = Path(__file__).parents[3] / "shared" / "data" / "clutter"
N5 = [-3.6048, 1.1717, 2.9157, 0.3442, 2.2250]

# n -> iterations, KL(q || p), mean, variance of the paper's method.
PAPER = {
    20: (30, 0.03974, 1.2328, 0.2654),
    5: (20, 0.1483, 1.7674, 0.5728),
    10: (20, 0.004163, 1.5880, 0.2376),
}
PAPER[100] = (20, 8.223e-5, 1.77953, 0.03072)
BY_ITERATION = {1: 1.449, 2: 0.917, 3: 0.607, 5: 0.219, 8: 0.045, 10: 0.031, 15: 0.037}


@scoped
def annealed(target, steps=None, **options):
    with host_algebra():
        return run(
            target,
            Gaussian.full(target.dim),
            None,
            Annealed(**options),
            key=0,
            tol=0.02,
            budget=tb.Budget(),
            max_steps=steps,
        )


def paper_data(n):
    path = DATA / f"paper_n{n}.csv"
    if not path.exists():
        pytest.skip(f"the paper's data are not in {DATA}")
    return Clutter(np.loadtxt(path, skiprows=1))


@pytest.mark.parametrize("n", PAPER)
def test_the_paper_s_numbers(n):
    target = paper_data(n)
    steps, kl, mean, variance = PAPER[n]
    q = annealed(target, steps).q
    assert target.exact().kl(q) == pytest.approx(kl, rel=5e-4 if n != 100 else 1e-3)
    assert q.mean[0] == pytest.approx(mean, abs=6e-5)
    assert q.cov[0, 0] == pytest.approx(variance, abs=6e-5)


def test_kl_by_iteration():
    target = paper_data(20)
    exact = target.exact()
    for steps, kl in BY_ITERATION.items():
        assert exact.kl(annealed(target, steps).q) == pytest.approx(kl, abs=6e-4)


def test_the_cap_is_reached_where_the_posterior_is_wide():
    """Two conflicting points under mostly background.

    The best Gaussian has a variance far above vg, the paper's has vg.
    """
    target = Clutter([-4.0, 5.0], w=0.9)
    assert target.exact().cov[0, 0] > 10
    assert annealed(target).q.cov[0, 0] == pytest.approx(1.0)


def test_both_rules_share_their_fixed_point_and_natural_is_faster():
    """13 steps instead of 39 on the skewed data set."""
    target = paper_data(20)
    paper, natural = annealed(target, rule="paper"), annealed(target, rule="natural")
    np.testing.assert_allclose(natural.q.mean, paper.q.mean, atol=1e-5)
    np.testing.assert_allclose(natural.q.cov, paper.q.cov, atol=1e-5)
    assert paper.steps == pytest.approx(39, abs=2)
    assert natural.steps == pytest.approx(13, abs=2)


@pytest.mark.slow
def test_in_the_plane_it_ends_near_the_posterior():
    """n = 100 in two dimensions.

    KL of a few 1e-4: the median over 15 data sets is 3.2e-4.
    """
    kls = []
    for seed in range(5):
        rng = np.random.default_rng(seed)
        inlier = rng.random(100) < 0.5
        x = np.where(
            inlier[:, None],
            np.array([2.0, 0.0]) + rng.standard_normal((100, 2)),
            10**0.5 * rng.standard_normal((100, 2)),
        )
        target = Clutter(x)
        ran = annealed(target)
        assert ran.result is Result.converged
        kls.append(target.exact().kl(ran.q))
    assert np.median(kls) < 8e-4


@pytest.mark.parametrize(
    "x",
    [[0.0, 1.0, 1e6], [1e6, -1e6], [3.0], [2.0, 2.0]],
    ids=["far", "both far", "one", "identical"],
)
def test_never_nan(x):
    ran = annealed(Clutter(x))
    assert np.isfinite(ran.q.mean).all()
    assert ran.q.cov[0, 0] > 0
    assert ran.result in (Result.converged, Result.max_steps)


def test_by_fit():
    fit = tb.fit(Clutter(N5), Gaussian.full(1), solver=Annealed())
    assert fit.result is Result.converged
    assert np.isnan(fit.trace.loss).all()
    assert fit.elbo.value == pytest.approx(fit.target.exact().elbo(fit.q), abs=5 * fit.elbo.stderr)


def test_pairings():
    with pytest.raises(PairingError, match="ability `contaminated`"):
        tb.fit(GaussianTarget(Gaussian.full(1)), Gaussian.full(1), solver=Annealed())
    with pytest.raises(PairingError, match="takes no objective"):
        tb.fit(Clutter(N5), Gaussian.full(1), ELBO(), Annealed())
    with pytest.raises(PairingError, match="full-rank"):
        tb.fit(Clutter(N5), Gaussian.diagonal(1), solver=Annealed())
    with pytest.raises(PairingError, match="rule='natural'"):
        tb.fit(Clutter(np.ones((2, 2))), Gaussian.full(2), solver=Annealed("paper"))
    with pytest.raises(ValueError, match="`rule` must be"):
        Annealed("popov")
