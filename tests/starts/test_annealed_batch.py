"""The compiled annealed start: the host loop, step for step, and what tb.fit_batch makes of it."""

import jax
import numpy as np
import pytest

import tightbound as tb
from tightbound._numerics import x64
from tightbound.experiments.clutter_methods import default_rung, draw
from tightbound.results import PairingError
from tightbound.starts.annealed import advanced, first_state, gaussian_of, paper_update
from tightbound.starts.annealed_batch import annealed_start
from tightbound.targets import Clutter

RNG = np.random.default_rng(8)


@pytest.mark.parametrize(
    "member",
    [
        Clutter(draw(RNG, 12)),
        Clutter(
            draw(RNG, 12),
            w=RNG.uniform(0.2, 0.8, 12),
            vg=RNG.uniform(0.5, 2, 12),
            weights=RNG.uniform(0.5, 2, 12),
        ),
        Clutter(
            draw(RNG, 12)[:, None], vg=[[2.5]], log_clutter=-3.0, prior_mean=1.0, prior_var=3.0
        ),
    ],
    ids=["plain", "per point", "matrix"],
)
def test_it_is_the_host_loop(member):
    state = first_state(member.kernels(), 1e-12)
    for _ in range(7):
        state = advanced(state, paper_update)
    host = gaussian_of(state)
    with x64():
        traced = annealed_start(member, 7)
    np.testing.assert_allclose(traced.mean, host.mean, rtol=1e-10)
    np.testing.assert_allclose(traced.cov, host.cov, rtol=1e-10)


@pytest.mark.slow
def test_many_sensors_at_once():
    """60 sensors of 20 points.

    Means within a tenth of a posterior sd of each sensor's own fit, and sds within 10 %.
    """
    x = np.stack([draw(RNG, 20) for _ in range(60)])
    batch = tb.fit_batch(Clutter, x, start=annealed_start)
    with x64():
        own = [default_rung(Clutter(row)).q for row in x]
    mean, sd = np.array([q.mean[0] for q in own]), np.array([q.sd[0] for q in own])
    off = np.abs(np.asarray(batch.mean)[:, 0] - mean) / sd
    assert np.quantile(off, 0.9) < 0.1
    assert np.quantile(np.abs(np.abs(np.asarray(batch.root)[:, 0, 0]) / sd - 1), 0.9) < 0.1
    assert np.mean([result.ok for result in batch.results]) > 0.8


def test_more_dimensions_are_refused():
    with pytest.raises(PairingError, match="one dimension, the target has 2"):
        annealed_start(Clutter(np.ones((3, 2))))
    assert jax.config.jax_enable_x64  # as in all tests
