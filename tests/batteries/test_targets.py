"""Every target passes its battery; targets broken on purpose fail it.

TARGETS and SIMULATORS: name -> a function that makes (target, options of check_target or of
check_simulator). `reference` is the same log density written by hand with SciPy, on the native
scale. Adding a target is one line and its reference.
"""

import contextlib
import dataclasses
import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
import scipy.stats as st
from scipy.special import logsumexp

import tightbound as tb
from tightbound import families as F
from tightbound import targets as T
from tightbound.families import Gaussian
from tightbound.search.conjugate_form import as_conjugate
from tightbound.targets import Clutter, LinearClutter, LinearSites
from tightbound.targets.base import Density, Joint
from tightbound.testing import GaussianTarget, check_simulator, check_target

RNG = np.random.default_rng(7)
N5 = np.array([-3.6048, 1.1717, 2.9157, 0.3442, 2.2250])
X2 = RNG.standard_normal((6, 2)) + np.array([1.0, 0.0])
VG2 = np.array([[1.0, 0.3], [0.3, 2.0]])
PER_POINT = RNG.uniform(0.3, 2.0, 6)
WEIGHTS = RNG.uniform(0.5, 3.0, 6)
A = RNG.standard_normal((6, 2))
Y = A @ np.array([1.0, -2.0]) + 0.3 * RNG.standard_normal(6)


@contextlib.contextmanager
def as_a_user():
    """Targets run the user's code, under JAX's ordinary promotion rules."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def numbers(values):
    """The values of a target in NumPy."""
    return jax.tree.map(np.asarray, values)


def simplexes(*names):
    """What determines the values where rows of these sum to one: all but the last of each."""
    return lambda values: jnp.concatenate(
        [
            jnp.ravel(values[name][..., :-1] if name in names else values[name])
            for name in sorted(values)
        ]
    )


# -- contaminated data and sites


def clutter(*args, **options):
    target = Clutter(*args, **options)
    root, (mean, cov) = target.noise_root, target.prior()

    def reference(values):
        point = np.atleast_1d(np.asarray(values["theta"]))
        total = st.multivariate_normal(mean, cov).logpdf(point)
        for i, x in enumerate(np.asarray(target.x)):
            inlier = st.multivariate_normal(x, target.noise_scale[i] * root @ root.T).pdf(point)
            w, background = target.w[i], np.exp(target.log_clutter[i])
            total += target.weights[i] * np.log((1 - w) * inlier + w * background)
        return total

    return target, {"reference": reference}


def linear_clutter():
    w, vg = np.array([0.1, 0.2, 0.3] * 2), np.array([0.1, 0.2] * 3)

    def reference(values):
        z = np.asarray(values["z"])
        inlier, outlier = st.norm(A @ z, vg**0.5).pdf(Y), st.norm(Y.mean(), 30**0.5).pdf(Y)
        return st.norm(0, 3).logpdf(z).sum() + np.log((1 - w) * inlier + w * outlier).sum()

    return LinearClutter(A, Y, w=w, vg=vg, vc=30.0, prior_var=9.0), {"reference": reference}


def linear_sites():
    signs = np.where(Y > 0, 1.0, -1.0)

    def reference(values):
        z = np.asarray(values["z"])
        prior = st.norm([0.5, 0.0], 2**0.5).logpdf(z).sum()
        return prior - np.log1p(np.exp(-signs * (A @ z))).sum()

    target = LinearSites(
        A, lambda s, y: jax.nn.log_sigmoid(s * y), signs, prior_mean=[0.5, 0.0], prior_var=2.0
    )
    return target, {"reference": reference}


# -- the user's own functions


def log_density():
    """A normal sample with a half Cauchy scale, and an angle."""

    def by_jax(p):
        residuals = (Y - p["mu"]) / p["sigma"]
        likelihood = -0.5 * jnp.sum(residuals**2) - len(Y) * jnp.log(p["sigma"])
        return likelihood - p["mu"] ** 2 - jnp.log1p(p["sigma"] ** 2)

    def reference(values):
        mu, sigma = float(values["mu"]), float(values["sigma"])
        prior = st.norm(0, 0.5**0.5).logpdf(mu) + st.halfcauchy().logpdf(sigma)
        return prior + st.norm(mu, sigma).logpdf(Y).sum()

    target = tb.from_log_density(by_jax, {"mu": 0.0, "sigma": 1.0}, support={"sigma": "positive"})
    return target, {"reference": reference}


def regression(data=slice(None)):
    return tb.from_rows(
        lambda p: -0.5 * jnp.sum(p["b"] ** 2) / 4 - p["s"],
        lambda p, rows: -0.5 * ((rows["y"] - rows["x"] @ p["b"]) / p["s"]) ** 2 - jnp.log(p["s"]),
        {"x": A[data], "y": Y[data]},
        {"b": np.zeros(2), "s": 1.0},
        support={"s": "positive"},
    )


def independent_rows():
    def reference(values):
        b, s = np.asarray(values["b"]), float(values["s"])
        prior = st.norm(0, 2).logpdf(b).sum() + st.expon().logpdf(s)
        return prior + st.norm(A @ b, s).logpdf(Y).sum()

    return regression(), {"reference": reference}


def updated_rows():
    """The prior is a Gaussian on the unconstrained scale, where the log-Jacobian is no part."""
    mean, cov = np.array([0.3, -0.2, 0.1]), np.diag([0.3, 0.5, 0.2]) + 0.1

    def reference(values):
        b, s = np.asarray(values["b"]), float(values["s"])
        prior = st.multivariate_normal(mean, cov).logpdf(np.array([*b, np.log(s)])) - np.log(s)
        return prior + st.norm(A[4:] @ b, s).logpdf(Y[4:]).sum()

    target = regression(slice(4)).after(mean, cov, {"x": A[4:], "y": Y[4:]})
    return target, {"reference": reference}


# -- NumPyro


def numpyro_model():
    import numpyro
    import numpyro.distributions as dist

    def schools(y):
        mu = numpyro.sample("mu", dist.Normal(0, 5))
        tau = numpyro.sample("tau", dist.HalfCauchy(2))
        share = numpyro.sample("share", dist.Beta(2, 3))
        with numpyro.plate("J", len(y)):
            theta = numpyro.sample("theta", dist.Normal(mu, tau))
            numpyro.sample("y", dist.Normal(share * theta, 1), obs=y)

    def reference(values):
        v = numbers(values)
        prior = st.norm(0, 5).logpdf(v["mu"]) + st.halfcauchy(0, 2).logpdf(v["tau"])
        prior += (
            st.beta(2, 3).logpdf(v["share"]) + st.norm(v["mu"], v["tau"]).logpdf(v["theta"]).sum()
        )
        return prior + st.norm(v["share"] * v["theta"], 1).logpdf(Y).sum()

    return tb.from_numpyro(schools, Y), {"reference": reference}


def numpyro_rows():
    import numpyro
    import numpyro.distributions as dist

    def normal(y):
        mu = numpyro.sample("mu", dist.Normal(0, 1))
        sigma = numpyro.sample("sigma", dist.HalfNormal(1))
        with numpyro.plate("N", len(y), subsample_size=2) as index:
            numpyro.sample("y", dist.Normal(mu, sigma), obs=y[index])

    def reference(values):
        mu, sigma = float(values["mu"]), float(values["sigma"])
        prior = st.norm(0, 1).logpdf(mu) + st.halfnorm().logpdf(sigma)
        return prior + st.norm(mu, sigma).logpdf(Y).sum()

    return tb.from_numpyro(normal, Y), {"reference": reference}


def found_model():
    """The conjugate form of a NumPyro model: its log joint is that of the model itself."""
    import numpyro
    import numpyro.distributions as dist

    def model(y):
        mu = numpyro.sample("mu", dist.Normal(0.0, 2.0))
        tau = numpyro.sample("tau", dist.Gamma(2.0, 1.0))
        numpyro.sample("y", dist.Normal(mu, 1.0 / jnp.sqrt(tau)), obs=y)

    return as_conjugate(tb.from_numpyro(model, Y)), {"dim": 2, "reference": _normal_sample}


# -- conjugate models


def _normal_sample(values):
    mu, tau = float(values["mu"]), float(values["tau"])
    prior = st.norm(0, 2).logpdf(mu) + st.gamma(2).logpdf(tau)
    return prior + st.norm(mu, tau**-0.5).logpdf(Y).sum()


def normal_sample():
    target = T.NormalSample(Y, mean=F.Normal(0.0, 0.25), precision=F.Gamma(2.0, 1.0))
    return target, {"reference": _normal_sample}


def linear_regression():
    def reference(values):
        v = numbers(values)
        prior = st.gamma(2).logpdf([*v["alpha"], v["tau"]]).sum()
        prior += st.norm(0, v["alpha"] ** -0.5).logpdf(v["beta"]).sum()
        return prior + st.norm(A @ v["beta"], v["tau"] ** -0.5).logpdf(Y).sum()

    ones = F.Gamma(2.0, 1.0)
    return T.LinearRegressionARD(A, Y, alpha=ones, tau=ones), {"reference": reference}


def hierarchy():
    group = np.array([0, 0, 1, 1, 1, 2])

    def reference(values):
        v = numbers(values)
        prior = st.norm(0, 2).logpdf(v["mu"]) + st.gamma(2).logpdf([v["lam"], v["tau"]]).sum()
        prior += st.norm(v["mu"], v["lam"] ** -0.5).logpdf(v["theta"]).sum()
        return prior + st.norm(v["theta"][group], v["tau"] ** -0.5).logpdf(Y).sum()

    ones = F.Gamma(2.0, 1.0)
    target = T.HierarchicalNormal(Y, group, mu=F.Normal(0.0, 0.25), lam=ones, tau=ones)
    return target, {"reference": reference}


def mixture():
    """Indicators summed out: a density of weights, means and precisions."""
    target = T.GaussianMixture(
        X2, 2, weight_prior=1.5, mean_prior=np.zeros(2), mean_strength=0.5, df=4.0,
        inverse_scale=np.eye(2),
    )  # fmt: skip

    def reference(values):
        v = numbers(values)
        total, terms = st.dirichlet(np.full(2, 1.5)).logpdf(v["weights"] / v["weights"].sum()), []
        for k in range(2):
            mean, precision = v["components"]["mean"][k], v["components"]["precision"][k]
            total += st.wishart(4, np.eye(2)).logpdf(precision)
            total += st.multivariate_normal(np.zeros(2), np.linalg.inv(0.5 * precision)).logpdf(
                mean
            )
            law = st.multivariate_normal(mean, np.linalg.inv(precision))
            terms.append(np.log(v["weights"][k]) + law.logpdf(X2))
        return total + logsumexp(terms, axis=0).sum()

    def free(values):
        precision = values["components"]["precision"]
        parts = [values["components"]["mean"], precision[:, [0, 1, 1], [0, 0, 1]]]
        return jnp.concatenate([jnp.ravel(p) for p in (*parts, values["weights"][:-1])])

    return target, {"reference": reference, "free": free}


def factor_analysis():
    """The directions' scores integrated out: rows are normal with covariance W W' + noise."""
    y = np.random.default_rng(1).standard_normal((5, 3)) @ np.diag([2.0, 1.0, 0.5])
    ones = F.Gamma(2.0, 1.0)

    def reference(values):
        v = numbers(values)
        prior = (
            st.gamma(2).logpdf([*v["alpha"], *v["tau"]]).sum() + st.norm(0, 2).logpdf(v["mu"]).sum()
        )
        prior += st.norm(0, v["alpha"] ** -0.5).logpdf(v["W"]).sum()
        cov = v["W"] @ v["W"].T + np.diag(1 / v["tau"])
        return prior + st.multivariate_normal(v["mu"], cov).logpdf(y).sum()

    target = T.FactorAnalysis(y, 1, isotropic=False, alpha=ones, tau=ones, mean_precision=0.25)
    return target, {"reference": reference}


def hidden_markov():
    """The states summed out: the table of all paths; the shorter sequence is padded."""
    sequences = [[0, 0, 1, 2], [2, 0]]

    def reference(values):
        v = numbers(values)
        total = sum(
            st.dirichlet(np.full(len(row), 1.5)).logpdf(row / row.sum())
            for name in ("initial", "transition", "emission")
            for row in np.atleast_2d(v[name])
        )
        for symbols in sequences:
            paths = np.array(list(itertools.product(range(2), repeat=len(symbols))))
            p = v["initial"][paths[:, 0]] * v["transition"][paths[:, :-1], paths[:, 1:]].prod(
                axis=1
            )
            total += np.log(np.sum(p * v["emission"][paths, symbols].prod(axis=1)))
        return total

    target = T.HiddenMarkovModel(
        sequences, 2, initial_prior=1.5, transition_prior=1.5, emission_prior=1.5
    )
    return target, {
        "reference": reference, "free": simplexes("initial", "transition", "emission"),
    }  # fmt: skip


def topics():
    """Only topics are shown; proportions and assignments are given, as two hidden factors."""
    documents, z = [[0, 1, 2], [2, 2, 0]], np.array([[0, 1, 1], [1, 0, 0]])
    shares = np.array([[0.3, 0.7], [0.6, 0.4]])

    def reference(values):
        rows = np.asarray(values["topics"])
        total = sum(st.dirichlet(np.full(3, 1.5)).logpdf(row / row.sum()) for row in rows)
        total += sum(st.dirichlet(np.full(2, 0.8)).logpdf(row) for row in shares)
        total += np.log(rows[z, documents]).sum()
        return total + np.log(shares[np.arange(2)[:, None], z]).sum()

    target = T.LatentDirichletAllocation.from_documents(
        documents, 2, topic_prior=1.5, proportion_prior=0.8
    )
    return target, {
        "dim": 4,
        "hidden": {"proportions": shares, "z": z.astype(float)},
        "free": lambda values: values["topics"][:, :-1],
        "reference": reference,
    }


def _switches(m):
    """mu ~ N(0, 1), switches s_i ~ Bernoulli(1 / 2), y_i ~ N(mu + s_i, 1); s local."""
    mu, s = m["mu"], m["s"].value
    squares = Y**2 + mu.square + s - 2 * Y * mu.value - 2 * Y * s + 2 * mu.value * s
    return -0.5 * mu.square - 0.5 * jnp.sum(squares) - len(Y) * np.log(2.0)


def collapsed():
    """One hidden factor, which is summed out."""

    def reference(values):
        mu = float(values["mu"])
        laws = [st.norm(mu + s, 1).pdf(Y) for s in (0.0, 1.0)]
        return st.norm(0, 1).logpdf(mu) + np.log(0.5 * sum(laws)).sum()

    q = F.Product(mu=F.Normal(0.0, 1.0), s=F.Bernoulli(np.zeros(6)))
    return tb.from_expected_log_joint(_switches, q), {"reference": reference}


def two_hidden():
    """A second hidden factor that meets the first in one term: values of both must be given."""
    s, r = np.array([0.0, 1, 1, 1, 1, 0]), np.array([1.0])

    def both(m):
        return _switches(m) + 0.3 * jnp.sum(m["s"].value) * jnp.sum(m["r"].value)

    def reference(values):
        mu = float(values["mu"])
        return st.norm(0, 1).logpdf(mu) + st.norm(mu + s, 1).logpdf(Y).sum()

    q = F.Product(mu=F.Normal(0.0, 1.0), s=F.Bernoulli(np.zeros(6)), r=F.Bernoulli(np.zeros(1)))
    return tb.from_expected_log_joint(both, q), {
        "dim": 1, "hidden": {"s": s, "r": r}, "reference": reference,
    }  # fmt: skip


# -- simulators

SUPPORT = {"scale": "positive", "angle": "circular"}
LAWS = {"scale": st.expon(), "angle": st.uniform(-np.pi, 2 * np.pi)}


def simulator():
    def prior(key):
        a, b = jr.split(key)
        return {"scale": jr.exponential(a), "angle": jr.uniform(b, (), float, 0.0, 2 * jnp.pi)}

    return tb.from_simulator(
        prior,
        lambda key, p: p["scale"] * jnp.cos(p["angle"]) + jr.normal(key, (2,)),
        support=SUPPORT,
        log_prior=lambda p: -p["scale"],
        log_likelihood=lambda p, x: -0.5 * jnp.sum((x - p["scale"] * jnp.cos(p["angle"])) ** 2),
    )


def residual(values, x):
    return x - values["scale"] * jnp.cos(values["angle"])


def simulator_posterior():
    """Of given data; z[0] is the angle, which lies inside (-pi, pi) at all points tried."""
    x = np.array([0.3, -1.0])

    def reference(values):
        v = numbers(values)
        mean = v["scale"] * np.cos(v["angle"])
        return st.expon().logpdf(v["scale"]) + st.norm(mean, 1).logpdf(x).sum()

    return simulator().at(x), {"reference": reference, "spread": 0.7}


def stored():
    rng = np.random.default_rng(0)
    scale, angle = rng.exponential(size=3000), rng.uniform(-np.pi, np.pi, 3000)
    x = (scale * np.cos(angle))[:, None] + rng.standard_normal((3000, 2))
    return tb.from_simulations({"scale": scale, "angle": angle}, x, support=SUPPORT)


TARGETS = {
    "GaussianTarget": lambda: (
        GaussianTarget(Gaussian.from_root(np.ones(3), np.eye(3) + 0.3), 2.0), {}),
    "Clutter 1": lambda: clutter(N5),
    "Clutter 1 per point": lambda: clutter(
        X2[:, 0], w=np.linspace(0.1, 0.9, 6), vg=PER_POINT, weights=WEIGHTS),
    "Clutter 1 without background at two points": lambda: clutter(
        N5, log_clutter=[-1.0, -np.inf, -2.0, -np.inf, -3.0]),
    "Clutter 2 full": lambda: clutter(
        X2, vg=VG2, vc=4 * VG2, prior_mean=[1.0, -1.0], prior_var=3 * VG2, weights=WEIGHTS),
    "Clutter 3": lambda: clutter(
        np.random.default_rng(1).standard_normal((4, 3)), vg=PER_POINT[:4], log_clutter=-5.0),
    "LinearClutter": linear_clutter,
    "LinearSites": linear_sites,
    "LogDensity": log_density,
    "IndependentRows": independent_rows,
    "UpdatedRows": updated_rows,
    "NumPyroModel": numpyro_model,
    "NumPyroRows": numpyro_rows,
    "SimulatorPosterior": simulator_posterior,
    "NormalSample": normal_sample,
    "LinearRegressionARD": linear_regression,
    "HierarchicalNormal": hierarchy,
    "GaussianMixture": mixture,
    "FactorAnalysis": factor_analysis,
    "HiddenMarkovModel": hidden_markov,
    "LatentDirichletAllocation": topics,
    "CollapsedModel": collapsed,
    "ConjugateModel": two_hidden,
    "FoundModel": found_model,
}  # fmt: skip
SIMULATORS = {
    "SimulatedModel": lambda: (simulator(), {"prior": LAWS, "residual": residual}),
    "StoredSimulations": lambda: (stored(), {"prior": LAWS, "residual": residual}),
}


@pytest.mark.parametrize("name", TARGETS)
def test_target(name, key):
    with as_a_user():
        target, options = TARGETS[name]()
        check_target(target, key, **options)


@pytest.mark.parametrize("name", SIMULATORS)
def test_simulator(name, key):
    with as_a_user():
        target, options = SIMULATORS[name]()
        check_simulator(target, key, **options)


# -- negative controls


class Scale(Joint, Density):
    """A positive value with an exponential prior, on its log scale; `fault` is what is wrong."""

    fault: str = eqx.field(static=True)
    dim = 1
    coordinate_names = ("scale",)

    def constrain(self, z):
        return {"scale": jnp.exp(z[0])}

    def unconstrain(self, values):
        return jnp.log(values["scale"])[None] + (1.0 if self.fault == "inverse" else 0.0)

    def log_joint(self, values):
        return -values["scale"]

    def log_density(self, z):
        jacobian = 0.0 if self.fault == "Jacobian" else z[0]
        value = self.log_joint(self.constrain(z)) + jacobian
        return _with_wrong_gradient(value) if self.fault == "gradient" else value


@jax.custom_jvp
def _with_wrong_gradient(x):
    return x


_with_wrong_gradient.defjvp(lambda primals, tangents: (primals[0], 1.01 * tangents[0]))


def test_target_battery_passes_the_same_target_unbroken(key):
    check_target(Scale(""), key, reference=lambda values: 3.0 - values["scale"])


BROKEN_TARGETS = {
    "Jacobian": "log-Jacobian is 0",
    "inverse": "does not invert",
    "gradient": "not the difference quotient",
}


@pytest.mark.parametrize(("fault", "sentence"), BROKEN_TARGETS.items(), ids=BROKEN_TARGETS)
def test_target_battery_catches(fault, sentence, key):
    with pytest.raises(AssertionError, match=sentence):
        check_target(Scale(fault), key)


def test_target_battery_catches_another_model(key):
    with pytest.raises(AssertionError, match="more than a constant"):
        check_target(Scale(""), key, reference=lambda values: -2.0 * values["scale"])


def test_target_battery_catches_a_log_joint_of_another_model(key):
    """Without a density of its own: the hidden switches, one of them flipped."""
    target, options = two_hidden()
    other = {**options["hidden"], "s": 1.0 - options["hidden"]["s"]}
    with as_a_user(), pytest.raises(AssertionError, match="more than a constant"):
        check_target(target, key, **{**options, "hidden": other})


class Restless(T.StoredSimulations.__mro__[1]):
    """A stored table whose draws are one of its rows and some noise."""

    layout: object
    circular: tuple[bool, ...] = eqx.field(static=True)
    z: np.ndarray
    x: np.ndarray

    @property
    def num_simulations(self):
        return len(self.z)

    def take(self, index):
        return jnp.asarray(self.z)[index], jnp.asarray(self.x)[index]

    def draw(self, key):
        z, x = self.take(jr.randint(key, (), 0, len(self.z)))
        return z + jnp.array([0.0, 1e-3]), x


def test_simulator_battery_catches(key):
    with as_a_user():
        target, options = SIMULATORS["SimulatedModel"]()
        with pytest.raises(AssertionError, match="does not follow its prior"):
            check_simulator(target, key, **{**options, "prior": LAWS | {"scale": st.expon(0, 1.2)}})
        with pytest.raises(AssertionError, match="is off its law"):
            check_simulator(target, key, **{**options, "residual": lambda v, x: x - v["scale"]})
        table, _ = SIMULATORS["StoredSimulations"]()
        fields = {f.name: getattr(table, f.name) for f in dataclasses.fields(table)}
        with pytest.raises(AssertionError, match="none of the stored simulations"):
            check_simulator(Restless(**fields), key, **options)
