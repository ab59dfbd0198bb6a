"""The Gaussian family against SciPy, d x d linear algebra and itself in another representation."""

import subprocess
import sys
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from scipy.stats import multivariate_normal

from tightbound._numerics import to_device
from tightbound.families import Diagonal, Full, Gaussian, LowRank, kl

RNG = np.random.default_rng(0)
DIM = 5
MEAN = RNG.standard_normal(DIM)
SCALES = {
    "diagonal": Diagonal(RNG.standard_normal(DIM)),
    "full": Full.from_root(RNG.standard_normal((DIM, DIM))),
    "low_rank": LowRank(RNG.standard_normal((DIM, 2)), 0.3 * RNG.standard_normal(DIM)),
}
MEMBERS = {name: Gaussian(MEAN, scale) for name, scale in SCALES.items()}
every_member = pytest.mark.parametrize("q", MEMBERS.values(), ids=MEMBERS)


def device_value(f, *members):
    """What the compiled code gets: the same function on JAX leaves."""
    return np.asarray(eqx.filter_jit(f)(*to_device(members)))


@every_member
def test_density_and_entropy_are_scipys(q):
    reference = multivariate_normal(q.mean, q.cov)
    z, log_q = q.draw(6, key=0)
    np.testing.assert_allclose(log_q, reference.logpdf(z), rtol=1e-12)
    np.testing.assert_allclose(q.log_prob(z), reference.logpdf(z), rtol=1e-12)
    np.testing.assert_allclose(q.entropy(), reference.entropy(), rtol=1e-12)


@every_member
def test_host_and_device_agree(q):
    z = MEAN + 1.0
    for f in (
        lambda q: q.sd,
        lambda q: q.cov,
        lambda q: q.root,
        lambda q: q.entropy(),
        lambda q: q.whiten(z),
        lambda q: q.unwhiten(z),
        lambda q: q.whiten_score(z),
        lambda q: q.scale.precision_diagonal(),
        lambda q: q._log_prob(z),
    ):
        np.testing.assert_allclose(device_value(f, q), f(q), rtol=1e-12, atol=1e-13)


@every_member
def test_root_whitening_and_precision_belong_to_one_covariance(q):
    z = RNG.standard_normal((3, DIM))
    np.testing.assert_allclose(q.root @ q.root.T, q.cov, rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(q.unwhiten(z), q.mean + z @ q.root.T, rtol=1e-12)
    np.testing.assert_allclose(q.whiten(q.unwhiten(z)), z, rtol=1e-10)
    np.testing.assert_allclose(q.whiten_score(z), z @ q.root, rtol=1e-12)
    np.testing.assert_allclose(q.sd, np.sqrt(np.diag(q.cov)), rtol=1e-14)
    np.testing.assert_allclose(
        q.scale.precision_diagonal(), np.diag(np.linalg.inv(q.cov)), rtol=1e-9
    )


@every_member
def test_draws_are_antithetic_and_exact_in_the_mean(q):
    z, log_q = q.draw(10, key=3)
    np.testing.assert_allclose(z[:5] + z[5:], np.broadcast_to(2 * q.mean, (5, DIM)), rtol=1e-12)
    assert np.array_equal(q.draw(10, key=jr.key(3))[0], z)
    assert not np.array_equal(q.draw(10, key=4)[0], z)
    np.testing.assert_allclose(log_q[:5], log_q[5:])


@every_member
def test_host_leaves_stay_float64_where_x64_is_off(q):
    with jax.enable_x64(False):
        values = (
            q.sd,
            q.cov,
            q.root,
            q.draw(2, 0)[0],
            q.whiten(MEAN),
            np.asarray(q.sample(0)),
            np.asarray(q.log_prob(MEAN)),
        )
    assert {v.dtype for v in values} == {np.dtype(np.float64)}
    assert all(isinstance(v, np.ndarray) for v in values[:5])


@every_member
def test_float32_members_stay_float32(q):
    narrow = jax.tree.map(lambda leaf: leaf.astype(np.float32), q)
    assert narrow.draw(2, 0)[0].dtype == narrow.sd.dtype == np.float32
    assert narrow.sample(0).dtype == narrow.log_prob(MEAN).dtype == np.float32


@pytest.mark.parametrize("p", MEMBERS.values(), ids=MEMBERS)
@every_member
def test_kl_is_the_closed_form_and_its_gradient_autodiffs(p, q):
    p = p.moved(MEAN + 0.5)
    ratio = np.linalg.solve(q.cov, p.cov)
    shift = q.mean - p.mean
    expected = 0.5 * (
        np.trace(ratio) + shift @ np.linalg.solve(q.cov, shift) - DIM - np.linalg.slogdet(ratio)[1]
    )
    np.testing.assert_allclose(kl(p, q), expected, rtol=1e-9)
    np.testing.assert_allclose(device_value(kl, p, q), expected, rtol=1e-9)
    gradient = jax.grad(lambda mean: kl(Gaussian(mean, p.scale), q))(jnp.asarray(p.mean))
    np.testing.assert_allclose(gradient, np.linalg.solve(q.cov, -shift), rtol=1e-9)


@every_member
def test_kl_is_zero_only_between_equals(q):
    assert abs(kl(q, q)) < 1e-12
    assert kl(q, q.moved(q.mean, 1.01)) > 1e-4


def test_kl_refuses_different_dimensions():
    with pytest.raises(ValueError, match="different dimensions, 2 and 3"):
        kl(Gaussian.full(2), Gaussian.full(3))


@pytest.mark.parametrize(
    "make", [Gaussian.diagonal, Gaussian.full, lambda d: Gaussian.low_rank(d, 2)]
)
def test_constructors_start_at_unit_sds(make):
    q = make(4)
    np.testing.assert_allclose(q.sd, 1.0, rtol=1e-14)
    assert q.dim == 4
    assert np.all(q.mean == 0)
    assert kl(q, Gaussian.full(4)) < 0.01


def test_low_rank_start_is_no_saddle():
    """With U = 0 the gradient of any objective in U vanishes.

    The start has every column away from it.
    """
    for dim, rank in ((1, 1), (3, 3), (50, 7)):
        columns = np.linalg.norm(Gaussian.low_rank(dim, rank).scale.factor, axis=0)
        assert columns.min() > 0.01


@every_member
def test_moved_is_the_affine_image(q):
    centre, stretch = np.arange(DIM) + 1.0, np.linspace(0.5, 2.0, DIM)
    moved = q.moved(centre, stretch)
    np.testing.assert_allclose(moved.mean, centre)
    np.testing.assert_allclose(moved.cov, stretch[:, None] * q.cov * stretch, rtol=1e-12)
    np.testing.assert_allclose(q.moved(centre).cov, q.cov, rtol=1e-12)
    assert type(moved.scale) is type(q.scale)


def test_from_root_keeps_the_digits_of_a_condition_number_of_1e8():
    """The thinnest direction to 1e-9.

    A covariance formed on the way would lose it from the eighth digit on.
    """
    axes = np.linalg.qr(RNG.standard_normal((40, 40)))[0]
    root = axes * np.geomspace(1.0, 1e-4, 40)
    q = Gaussian.from_root(np.zeros(40), root @ np.linalg.qr(RNG.standard_normal((40, 40)))[0])
    singular = np.linalg.svd(np.linalg.solve(root, q.root), compute_uv=False)
    np.testing.assert_allclose(singular, 1.0, atol=1e-9)


def test_from_root_takes_a_wide_root():
    root = RNG.standard_normal((3, 7))
    np.testing.assert_allclose(Full.from_root(root).cov, root @ root.T, rtol=1e-12)


def test_from_covariance_survives_different_units():
    sd = np.array([1e-8, 1.0, 1e8])
    cov = sd[:, None] * np.array([[1, 0.5, 0.2], [0.5, 1, 0.1], [0.2, 0.1, 1]]) * sd
    np.testing.assert_allclose(Full.from_covariance(cov).cov, cov, rtol=1e-12)


@every_member
def test_a_small_step_moves_by_as_many_sds(q):
    """KL(moved || q) = |step|^2 / 2 for a step of the mean along q's own root, for every scale."""
    q = to_device(q)
    rest = jax.tree.map(jnp.zeros_like, q)
    direction = jnp.asarray(RNG.standard_normal(DIM))
    moved = q.retract(eqx.tree_at(lambda s: s.mean, rest, direction))
    np.testing.assert_allclose(kl(moved, q), 0.5 * jnp.sum(direction**2), rtol=1e-9)


def test_full_steps_do_not_depend_on_the_coordinates():
    """The same step from q and from its image under a lower triangular map leads to images of one
    another.
    """
    step = to_device(Gaussian(0.1 * MEAN, Full(0.1 * RNG.standard_normal((DIM, DIM)))))
    q, change = (
        to_device(MEMBERS["full"]),
        np.tril(RNG.standard_normal((DIM, DIM)), -1) + np.eye(DIM) * 3,
    )
    image = to_device(Gaussian(change @ q.mean, Full.from_root(change @ np.asarray(q.root))))
    one, two = q.retract(step), image.retract(step)
    np.testing.assert_allclose(two.mean, change @ one.mean, rtol=1e-10)
    np.testing.assert_allclose(two.cov, change @ np.asarray(one.cov) @ change.T, rtol=1e-9)


def test_low_rank_density_where_the_factor_dominates():
    """Sds of 1e6 beside 1.

    The sum-of-squares form keeps what the textbook's difference would cancel (1e12 of 1e12).
    """
    q = Gaussian(np.zeros(4), LowRank(1e6 * RNG.standard_normal((4, 2)), np.zeros(4)))
    delta = q.scale.factor @ np.array([1.0, -1.0])
    exact = delta @ np.linalg.solve(q.cov, delta)
    # `exact` itself has but 4 digits here
    np.testing.assert_allclose(q.scale.quadratic(delta), exact, rtol=1e-3)
    np.testing.assert_allclose(q.scale.quadratic(delta), 2.0, rtol=1e-10)


BAD = {
    "no dimension": (lambda: Gaussian.full(0), "`dim` must be an integer of at least 1, got 0"),
    "rank above dim": (lambda: Gaussian.low_rank(2, 3), "must not exceed `dim`"),
    "mean and scale": (
        lambda: Gaussian(np.zeros(3), Diagonal(np.zeros(2))),
        r"must have shape \[2\]",
    ),
    "singular root": (lambda: Full.from_root(np.zeros((2, 2))), "singular"),
    "narrow root": (lambda: Full.from_root(np.ones((3, 2))), "m >= d"),
    "nan root": (lambda: Full.from_root(np.full((2, 2), np.nan)), "NaN or infinite"),
    "indefinite": (
        lambda: Full.from_covariance(np.array([[1.0, 2.0], [2.0, 1.0]])),
        "not positive definite",
    ),
    "asymmetric": (
        lambda: Full.from_covariance(np.array([[1.0, 0.5], [0.0, 1.0]])),
        "not symmetric",
    ),
    "not square": (lambda: Full.from_covariance(np.ones((2, 3))), "square"),
    "factor": (lambda: LowRank(np.ones((3, 2)), np.zeros(2)), r"`factor` must be \[d, r\]"),
    "stretch": (lambda: Gaussian.full(2).moved(np.zeros(2), 0.0), "`sd` must be positive"),
    "point": (lambda: Gaussian.full(2).log_prob(np.zeros(3)), "axis of length 2"),
}


@pytest.mark.parametrize(("call", "sentence"), BAD.values(), ids=BAD)
def test_bad_arguments_are_named(call, sentence):
    with pytest.raises((ValueError, TypeError), match=sentence):
        call()


_WIDE = """
import re
from pathlib import Path

import numpy as np
from tightbound.families import Gaussian, kl

q = Gaussian.low_rank(100_000, 20).moved(np.ones(100_000), 2.0)
p = Gaussian.low_rank(100_000, 20)
z, log_q = q.draw(100, 0)
assert np.allclose(np.asarray(q.log_prob(z[:8])), log_q[:8])
assert np.isfinite(kl(q, p)) and np.isfinite(q.entropy()) and q.sd.shape == (100_000,)
q.sample(0, shape=(8,)), q.whiten(z), q.retract(q)
print(int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) / 2**20)
"""


@pytest.mark.slow
@pytest.mark.skipif(
    not Path("/proc/self/status").exists(),
    reason="the peak of a process of its own is read from Linux's /proc",
)
def test_low_rank_in_100_000_dimensions_stays_below_2_GiB():
    """Read from /proc.

    `getrusage` in a new process starts from the memory of the one that started it.
    """
    done = subprocess.run([sys.executable, "-c", _WIDE], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 2.0
