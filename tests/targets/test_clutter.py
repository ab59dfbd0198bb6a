"""The clutter target.

Its density against SciPy, its exact posterior against quadrature, and every refusal.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate as si
import scipy.stats as st

import tightbound as tb
from tightbound.families import Gaussian, Mixture
from tightbound.families.base import AbstractFamily
from tightbound.results import PairingError, TargetError
from tightbound.targets import (
    Clutter,
    Contaminated,
    Density,
    GaussianSites,
    LinearSites,
    Sites,
    require,
)
from tightbound.testing import check_target

N20 = [
    -1.3252,
    -2.3011,
    -5.0710,
    -1.4873,
    0.4896,
    1.1387,
    2.9932,
    2.7633,
    1.4019,
    2.6568,
    0.5034,
    1.6761,
    1.0904,
    -3.4887,
]
N20 += [1.3403, 2.3313, -0.4575, -1.1529, -1.7524, 0.3278]
N5 = [-3.6048, 1.1717, 2.9157, 0.3442, 2.2250]
RNG = np.random.default_rng(7)
X2 = RNG.standard_normal((6, 2)) + np.array([1.0, 0.0])
VG2 = np.array([[1.0, 0.3], [0.3, 2.0]])
PER_POINT = RNG.uniform(0.3, 2.0, 6)
WEIGHTS = RNG.uniform(0.5, 3.0, 6)

MEMBERS = {
    "1-D": Clutter(N5),
    "1-D per point": Clutter(X2[:, 0], w=RNG.uniform(0.1, 0.9, 6), vg=PER_POINT, weights=WEIGHTS),
    "1-D no clutter at two points": Clutter(N5, log_clutter=[-1.0, -np.inf, -2.0, -np.inf, -3.0]),
    "2-D": Clutter(X2),
    "2-D full": Clutter(
        X2, vg=VG2, vc=4 * VG2, prior_mean=[1.0, -1.0], prior_var=3 * VG2, weights=WEIGHTS
    ),
    "3-D": Clutter(RNG.standard_normal((4, 3)), vg=RNG.uniform(0.3, 2.0, 4), log_clutter=-5.0),
}


def by_hand(member, points):
    """log joint at `points [m, D]` by SciPy."""
    x, dim = np.asarray(member.x), member.dim
    root, prior = member.noise_root, member.prior()
    log_p = st.multivariate_normal(prior[0], prior[1]).logpdf(points).reshape(len(points))
    for i in range(len(x)):
        cov = member.noise_scale[i] * root @ root.T
        inlier = (1 - member.w[i]) * st.multivariate_normal(x[i], cov).pdf(points).reshape(
            len(points)
        )
        log_p = log_p + member.weights[i] * np.log(
            inlier + member.w[i] * np.exp(member.log_clutter[i])
        )
    assert log_p.shape == (len(points),)
    assert dim == points.shape[1]
    return log_p


@pytest.mark.parametrize("member", MEMBERS.values(), ids=MEMBERS)
def test_density_is_the_one_of_scipy_and_passes_its_battery(member, key):
    check_target(member, key)
    points = RNG.standard_normal((5, member.dim))
    np.testing.assert_allclose(
        member.log_density_on_host(points), by_hand(member, points), rtol=1e-12
    )
    np.testing.assert_allclose(
        [member.log_density(z) for z in points], by_hand(member, points), rtol=1e-12
    )


@pytest.mark.parametrize("member", MEMBERS.values(), ids=MEMBERS)
def test_density_is_prior_times_sites(member):
    z = RNG.standard_normal(member.dim)
    sites = sum(member.weights[i] * float(member.log_site(i, z)) for i in range(member.num_sites))
    prior = st.multivariate_normal(*member.prior()).logpdf(z)
    np.testing.assert_allclose(float(member.log_density(z)), prior + sites, rtol=1e-12)


def test_values_are_a_number_in_one_dimension_and_a_vector_in_more():
    assert Clutter(N5).coordinate_names == ("theta",)
    assert Clutter(X2).coordinate_names == ("theta[0]", "theta[1]")
    assert np.shape(Clutter(N5).constrain(jnp.ones(1))["theta"]) == ()
    assert np.shape(Clutter(X2[:, :1]).constrain(jnp.ones(1))["theta"]) == (1,)


def test_default_clutter_is_the_stated_gaussian():
    np.testing.assert_allclose(Clutter(N5).log_clutter, st.norm(0, 10**0.5).logpdf(N5), rtol=1e-13)
    np.testing.assert_allclose(
        Clutter(X2, vc=VG2).log_clutter,
        st.multivariate_normal(np.zeros(2), VG2).logpdf(X2),
        rtol=1e-13,
    )


def test_abilities():
    for ability in (Density, Sites, GaussianSites, Contaminated):
        require("a part", Clutter(N5), ability)
    with pytest.raises(PairingError, match=r"contaminated.*tb\.targets\.Clutter"):
        require(
            "Annealed",
            LinearSites(np.ones((2, 1)), lambda s, y: -((s - y) ** 2), np.zeros(2)),
            Contaminated,
        )


# -- the tilted moments
# ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "member", [MEMBERS["2-D full"], MEMBERS["1-D per point"]], ids=["2-D", "1-D"]
)
def test_tilt_is_the_derivative_of_the_site_integral(member):
    """log Z_i against Gauss-Hermite (81 nodes per axis), its derivatives against finite differences
    of it.
    """
    dim, i = member.dim, 3
    mean, root = 0.3 * RNG.standard_normal(dim), 0.5 * (np.eye(dim) + 0.3 * np.tri(dim, k=-1))
    nodes, weights = np.polynomial.hermite_e.hermegauss(81)
    u = np.stack(np.meshgrid(*[nodes] * dim, indexing="ij"), -1).reshape(-1, dim)
    w = np.prod(
        np.stack(np.meshgrid(*[weights / weights.sum()] * dim, indexing="ij"), -1).reshape(-1, dim),
        axis=1,
    )

    def log_z(m):
        with jax.enable_x64(True):
            values = jax.vmap(lambda z: member.log_site(i, z))(jnp.asarray(m + u @ root.T))
            return float(np.log(w @ np.exp(np.asarray(values))))

    cov = root @ root.T
    value, slope, bend = member.tilt(np.array([i]), mean[None], cov[None])
    assert value[0] == pytest.approx(log_z(mean), rel=1e-10)
    h = 1e-4 * np.eye(dim)
    np.testing.assert_allclose(
        slope[0], [(log_z(mean + e) - log_z(mean - e)) / 2e-4 for e in h], atol=1e-7
    )
    hess = [
        [
            (log_z(mean + a + b) - log_z(mean + a - b) - log_z(mean - a + b) + log_z(mean - a - b))
            / 4e-8
            for a in h
        ]
        for b in h
    ]
    np.testing.assert_allclose(bend[0], -np.array(hess), atol=1e-5)


class Elsewhere(AbstractFamily):
    """A density far from everything, of a family that is no Gaussian."""

    @property
    def dim(self):
        return 1

    # What is abstract, and not asked of it: the divergence reads its density on the host alone.
    def _sample(self, key, x=None):
        raise NotImplementedError

    def _log_prob(self, z, x=None):
        raise NotImplementedError

    def log_prob_on_host(self, z):
        return st.norm(1e4, 1.0).logpdf(z[:, 0])


# -- the exact posterior
# --------------------------------------------------------------------------------------------


def test_exact_in_one_dimension_is_the_integral():
    member = Clutter(N5)
    exact = member.exact()
    f = lambda t, k: t**k * np.exp(by_hand(member, np.array([[t]]))[0] + 12.0)  # noqa: E731
    z, m, s = (
        si.quad(f, -110, 110, args=(k,), limit=400, points=[-4, 0, 2, 4], epsabs=1e-13)[0]
        for k in range(3)
    )
    assert exact.log_evidence == pytest.approx(np.log(z) - 12.0, abs=1e-9)
    assert exact.mean[0] == pytest.approx(m / z, abs=1e-8)
    assert exact.cov[0, 0] == pytest.approx(s / z - (m / z) ** 2, abs=1e-7)


def test_exact_agrees_with_the_spec():
    """Clutter spec, section 4.1: the skewed n = 20 data set and the n = 5 one."""
    exact = Clutter(N20).exact()
    assert exact.log_evidence == pytest.approx(-46.91529, abs=5e-6)
    assert exact.mean[0] == pytest.approx(1.15266, abs=5e-6)
    assert exact.cov[0, 0] == pytest.approx(0.41032, abs=5e-6)
    assert exact.kl(
        Gaussian.from_root(np.array([1.17781]), np.array([[0.34749**0.5]]))
    ) == pytest.approx(0.02537, abs=5e-6)


def test_exact_of_almost_no_clutter_is_conjugate():
    """w -> 0: mean, covariance and evidence are those of the normal model.

    N = 400 in one and 50 in two dimensions.
    """
    for x, vg in ((RNG.standard_normal(400), 0.7), (RNG.standard_normal((50, 2)), VG2)):
        exact = Clutter(x, w=1e-14, vg=vg).exact()
        noise = np.atleast_2d(vg)
        precision = len(x) * np.linalg.inv(noise) + np.eye(len(noise)) / 100
        mean = np.linalg.solve(
            precision, np.linalg.solve(noise, np.sum(np.reshape(x, (len(x), -1)), axis=0))
        )
        np.testing.assert_allclose(exact.mean, mean, atol=1e-9)
        np.testing.assert_allclose(exact.cov, np.linalg.inv(precision), rtol=1e-8, atol=1e-12)
        q = Gaussian.from_root(mean, np.linalg.cholesky(np.linalg.inv(precision)))
        assert exact.kl(q) == pytest.approx(0.0, abs=1e-9)
        assert exact.kl_from(q) == pytest.approx(0.0, abs=1e-9)


def log_prob_at(q, t):
    return float(q.log_prob_on_host(np.array([[t]]))[0])


def kl_by_quadrature(log_a, log_b, reach):
    """KL(a || b) between -reach and reach."""

    def integrand(t):
        return np.exp(log_a(t)) * (log_a(t) - log_b(t))

    return si.quad(integrand, -reach, reach, limit=300, points=[-3, 2])[0]


@pytest.mark.slow
def test_kl_both_ways_of_gaussian_and_mixture():
    """Against adaptive quadrature of the definition."""
    exact = Clutter(N5).exact()

    def log_p(t):
        return by_hand(exact.target, np.array([[t]]))[0] - exact.log_evidence

    parts = [
        Gaussian.from_root(np.array([m]), np.array([[s]])) for m, s in ((1.8, 0.9), (-3.5, 1.1))
    ]
    for q in (parts[0], Mixture(parts, np.array([1.0, -1.0]))):
        log_q = functools.partial(log_prob_at, q)
        forward = kl_by_quadrature(log_q, log_p, 15)
        backward = kl_by_quadrature(log_p, log_q, 110)
        assert exact.kl(q) == pytest.approx(forward, abs=1e-7)
        assert exact.kl_from(q) == pytest.approx(backward, abs=1e-5)
        assert exact.elbo(q) == pytest.approx(exact.log_evidence - forward, abs=1e-7)
    bent = tb.fit(
        exact.target, Gaussian.from_root(np.zeros(1), np.array([[2.0]])), solver=tb.solvers.Nested()
    ).q
    assert exact.kl(bent) == pytest.approx(0.0, abs=2e-3)
    with pytest.raises(TargetError, match="reaches beyond the grid"):
        exact.kl(Elsewhere())


def test_exact_in_two_dimensions_factorises_where_the_model_does():
    """One point that cannot be clutter: a Gaussian posterior, and the modes are found."""
    exact = Clutter(np.array([[1.0, -2.0]]), log_clutter=-np.inf).exact()
    np.testing.assert_allclose(exact.mean, np.array([1.0, -2.0]) * 100 / 101, atol=1e-7)
    np.testing.assert_allclose(exact.cov, np.eye(2) * 100 / 101, atol=1e-7)
    assert len(exact.modes) == 1
    assert len(Clutter([-8.0, -8.0, 8.0, 8.1], w=0.5).exact().modes) >= 2


@pytest.mark.parametrize("far", [1e3, 1e6])
def test_a_point_a_million_sds_away_is_ignored_under_wide_clutter(far):
    """With a uniform background the far point has no influence left.

    The posterior is that of the others.
    """
    near = Clutter([0.0, 0.3, 1.0], log_clutter=-12.0).exact()
    with_far = Clutter([0.0, 0.3, 1.0, far], log_clutter=-12.0, prior_var=4.0).exact()
    without = Clutter([0.0, 0.3, 1.0], log_clutter=-12.0, prior_var=4.0).exact()
    np.testing.assert_allclose(with_far.mean, without.mean, atol=1e-9)
    assert np.isfinite(near.log_evidence)


@pytest.mark.parametrize(
    "member", [Clutter(N20), MEMBERS["2-D full"], MEMBERS["3-D"]], ids=["1-D", "2-D", "3-D"]
)
def test_inlier_probabilities(member):
    """E_q of the responsibility by 61 nodes per axis.

    Beyond two dimensions by draws, within three of their standard errors.
    """
    q = Gaussian.from_root(np.full(member.dim, 0.9), 0.4 * np.tri(member.dim))
    u, w = np.polynomial.hermite_e.hermegauss(61 if member.dim < 3 else 25)
    grid = np.stack(np.meshgrid(*[u] * member.dim, indexing="ij"), -1).reshape(-1, member.dim)
    weights = np.prod(
        np.stack(np.meshgrid(*[w / w.sum()] * member.dim, indexing="ij"), -1).reshape(
            -1, member.dim
        ),
        axis=1,
    )
    theta = q.mean + grid @ np.asarray(q.root).T
    noise = member.noise_root @ member.noise_root.T
    truth = []
    for x, share, s, c in zip(
        np.asarray(member.x), member.w, member.noise_scale, member.log_clutter, strict=True
    ):
        inlier = (1 - share) * st.multivariate_normal(x, s * noise).pdf(theta).reshape(-1)
        truth.append(weights @ (inlier / (inlier + share * np.exp(c))))
    np.testing.assert_allclose(
        member.inlier_probabilities(q), truth, atol=1e-6 if member.dim < 3 else 0.024
    )
    mixed = Mixture([q, q.moved(np.asarray(q.mean) + 1e-9)])
    np.testing.assert_allclose(member.inlier_probabilities(mixed), truth, atol=0.024)


def test_arrays_may_be_traced():
    """What tb.fit_batch asks for.

    The same density and gradient for a target that is made inside vmap.
    """
    x, w, z = RNG.standard_normal((3, 5)), RNG.uniform(0.2, 0.8, (3, 5)), np.array([0.4])
    with jax.enable_x64(True):
        made = jax.vmap(
            lambda x, w: Clutter(x, w=w, vg=2.0, log_clutter=-3.0).log_density(jnp.asarray(z))
        )(x, w)
        plain = jax.vmap(lambda x: Clutter(x).log_density(jnp.asarray(z)))(x)
    np.testing.assert_allclose(
        made,
        [
            Clutter(a, w=b, vg=2.0, log_clutter=-3.0).log_density(z)
            for a, b in zip(x, w, strict=True)
        ],
        rtol=1e-12,
    )
    np.testing.assert_allclose(plain, [Clutter(a).log_density(z) for a in x], rtol=1e-12)


def test_with_noise_is_the_target_with_those_numbers():
    member = MEMBERS["2-D full"]
    changed = member.with_noise(0.3, 1.7, 0.6)
    fresh = Clutter(
        X2,
        w=0.3,
        vg=1.7 * VG2,
        vc=0.6 * 4 * VG2,
        prior_mean=[1.0, -1.0],
        prior_var=3 * VG2,
        weights=WEIGHTS,
    )
    points = RNG.standard_normal((4, 2))
    np.testing.assert_allclose(
        changed.log_density_on_host(points), fresh.log_density_on_host(points), rtol=1e-12
    )
    assert changed.vg == pytest.approx(1.7 * 1.5)
    assert changed.vc == pytest.approx(0.6 * 6.0)
    assert np.isnan(Clutter(N5, log_clutter=-3.0).vc)
    with pytest.raises(TargetError, match="has no variance"):
        Clutter(N5, log_clutter=-3.0).background_squares()


# -- what is refused
# ------------------------------------------------------------------------------------------------

BAD = {
    "no points": (([],), {}, "at least one"),
    "NaN point": (
        ([0.0, np.nan, np.inf],),
        {},
        r"`x` has 2 NaN or infinite entries, the first at \[1\]",
    ),
    "no vectors": ((np.ones((0, 2)),), {}, "at least one"),
    "infinite point": (([[0.0, np.inf]],), {}, r"the first at \[0, 1\]"),
    "w NaN": ((N5,), {"w": np.nan}, "`w` has 1 NaN"),
    "vc 0": ((N5,), {"vc": 0.0}, "`vc` is a variance and must be positive"),
    "log_clutter +inf": ((N5,), {"log_clutter": np.inf}, "-inf means none"),
    "three axes": ((np.ones((2, 2, 2)),), {}, r"\[n\] or \[n, D\]"),
    "text": ((["a"],), {}, "must be numbers"),
    "w 0": ((N5,), {"w": 0.0}, "strictly between 0 and 1"),
    "w 1": ((N5,), {"w": 1.0}, "strictly between 0 and 1"),
    "w shape": (
        (N5,),
        {"w": [0.5, 0.5]},
        r"`w` must be a number or have one entry per point, \[5\]",
    ),
    "vg 0": ((N5,), {"vg": 0.0}, "`vg` is a variance and must be positive"),
    "vg one negative": (
        (N5,),
        {"vg": [1.0, 1.0, -1.0, 1.0, 1.0]},
        "`vg` is a variance and must be positive",
    ),
    "vg matrix": ((X2,), {"vg": -np.eye(2)}, "`vg` must be symmetric and positive definite"),
    "vg wrong matrix": ((X2,), {"vg": np.eye(3)}, r"a covariance \[2, 2\]"),
    "vc": ((N5,), {"vc": -1.0}, "`vc` is a variance and must be positive"),
    "log_clutter NaN": ((N5,), {"log_clutter": np.nan}, "-inf means none"),
    "log_clutter shape": ((N5,), {"log_clutter": [0.0]}, r"\[5\]"),
    "prior_var": ((N5,), {"prior_var": 0.0}, "`prior_var` is a variance"),
    "prior_mean": (
        (X2,),
        {"prior_mean": [0.0, 0.0, 0.0]},
        r"`prior_mean` must be a number or have shape \[2\]",
    ),
    "weights": ((N5,), {"weights": [1.0, 1.0, 1.0, 1.0, 0.0]}, "`weights` must be positive"),
}


@pytest.mark.parametrize(("args", "kwargs", "sentence"), BAD.values(), ids=BAD)
def test_bad_input_is_a_sentence(args, kwargs, sentence):
    with pytest.raises(TargetError, match=sentence):
        tb.targets.Clutter(*args, **kwargs)


def test_exact_is_refused_in_three_dimensions():
    with pytest.raises(TargetError, match="one or two dimensions, this target has 3"):
        MEMBERS["3-D"].exact()


def test_exact_is_refused_for_modes_too_far_apart():
    with pytest.raises(TargetError, match="modes lie far"):
        Clutter([0.0, 1e6], log_clutter=-12.0, prior_var=1e13).exact()


@pytest.mark.parametrize("x", [[1.5], [2.0, 2.0, 2.0]], ids=["one point", "identical points"])
def test_one_point_and_identical_points_are_ordinary(x):
    exact = Clutter(x, w=1e-12).exact()
    assert exact.mean[0] == pytest.approx(np.sum(x) / (len(x) + 0.01), abs=1e-6)
