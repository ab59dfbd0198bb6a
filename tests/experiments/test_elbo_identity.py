"""The identities of variational inference.

The experiment, and on every target of the zoo with known evidence and exact draws.
"""

import jax
import numpy as np
import pytest

from tightbound._numerics import x64
from tightbound.experiments import pictures, run
from tightbound.families import Gaussian
from tightbound.targets import zoo
from tightbound.targets.batched import batched


@pytest.fixture(scope="module")
def result():
    with (
        jax.enable_x64(False),
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
    ):
        return run("elbo-identity")


@pytest.mark.slow
def test_every_claim_is_met(result):
    assert [claim["claim"] for claim in result.claims if not claim["ok"]] == []
    assert len(result.claims) == 12


@pytest.mark.slow
def test_the_divergence_is_not_symmetric(result):
    there, back = (
        np.array([row[key] for row in result.tables["members"]])
        for key in ("KL(q || posterior)", "KL(posterior || q)")
    )
    assert np.all(np.abs(there - back) > 1e-4)


@pytest.mark.slow
def test_the_picture_is_drawn(result):
    pytest.importorskip("matplotlib", reason="pictures need the extra `plots`")
    assert pictures(result)["identity"].startswith(b"\x89PNG")


KNOWN = {
    "gaussian": (lambda: zoo.gaussian(2, condition=30.0), 0.7),
    "normal_normal": (zoo.normal_normal, 0.7),
    "linear_regression": (zoo.linear_regression, 0.7),
    "beta_bernoulli": (zoo.beta_bernoulli, 0.7),
    "gamma_poisson": (zoo.gamma_poisson, 0.7),
    "student_t": (lambda: zoo.student_t(3, df=8.0), 0.7),
    "banana": (lambda: zoo.banana(curvature=0.1, scale=1.5), 0.5),
    "ring": (lambda: zoo.ring(radius=2.0, width=0.6), 0.7),
    "two_modes": (lambda: zoo.two_modes(2, separation=2.5), 0.7),
    "funnel": (lambda: zoo.funnel(2, scale=0.7), 0.5),
    "eight_schools": (zoo.eight_schools, 0.8),
}


@pytest.mark.parametrize("name", KNOWN)
def test_the_evidence_lies_between_its_bounds(name, as_a_user):
    """1/Z = E_posterior[q / p] for any q inside; ELBO <= log Z <= E_posterior[log p - log q].

    All within 4 standard errors.

    q has the posterior's mean and a fraction of its covariance, so that the ratio q / p is bounded
    or nearly so.
    """
    make, share = KNOWN[name]
    known = make()
    values = known.sample(4000, 1)
    with x64():
        z = np.asarray(jax.jit(jax.vmap(known.target.unconstrain))(values))
    q = Gaussian.from_root(
        z.mean(0), np.linalg.cholesky(share * np.cov(z.T).reshape(z.shape[1], z.shape[1]))
    )
    evaluate = batched(known.target)
    log_ratio = q.log_prob_on_host(z) - evaluate(z)[0]
    ratio = np.exp(log_ratio + known.log_evidence)
    assert abs(ratio.mean() - 1) < 4 * ratio.std() / np.sqrt(4000)
    assert ratio.std() < 20
    draws, log_q = q.draw(4000, 2)
    below, above = evaluate(draws)[0] - log_q, -log_ratio
    for sign, bound in ((1, below), (-1, above)):
        assert sign * (bound.mean() - known.log_evidence) < 4 * bound.std() / np.sqrt(4000)
