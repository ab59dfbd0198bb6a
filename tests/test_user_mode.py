"""As a user runs it: a process of its own, float64 off, JAX's standard promotion, no type checker,
nothing set up by tests.

One process does everything once and prints what it saw; the tests below judge it.
"""

import json
import subprocess
import sys

import numpy as np
import pytest

PROGRAM = r"""
import json, sys, tempfile, pathlib, warnings

warnings.simplefilter("error")
import jax, jax.numpy as jnp, numpy as np
import tightbound as tb

seen = {}
flags = (
    "jax_enable_x64",
    "jax_numpy_dtype_promotion",
    "jax_numpy_rank_promotion",
    "jax_default_matmul_precision",
)
state = lambda: {name: str(getattr(jax.config, name)) for name in flags}
seen["flags before"] = state()

# A Gaussian that float32 cannot reach: mean 1e5 with sd 1e-3 (the spacing of float32
# numbers there is 8e-3), beside a wide one.
mean, root = np.array([1e5, -2.0, 3e4]), np.array([[1e-3, 0, 0], [0.5, 2.0, 0], [3.0, 5.0, 40.0]])
precision = np.linalg.inv(root @ root.T)
target = tb.from_log_density(
    lambda p: -0.5 * (p["x"] - mean) @ precision @ (p["x"] - mean), {"x": np.zeros(3)}
)
start = tb.families.Gaussian.from_root(
    mean + 10 * np.sqrt(np.diag(root @ root.T)), np.diag([1.0, 1.0, 1.0])
)
fit = tb.fit(target, start, key=1, tol=1e-7)
true_sd = np.sqrt(np.diag(root @ root.T))


def kind(x):
    return [type(x).__name__, str(np.asarray(x).dtype)]


q = fit.q
seen["kinds"] = {
    "q.mean": kind(q.mean),
    "q.sd": kind(q.sd),
    "q.cov": kind(q.cov),
    "fit.sample": kind(fit.sample(0, 5)["x"]),
    "q.sample": kind(q.sample(0, shape=(4,))),
    "q.log_prob": kind(q.log_prob(mean)),
    "summary": kind(fit.summary()["mean"].to_numpy()),
    "trace": kind(fit.trace.loss),
    "corrected": kind(fit.sample(0, 5, corrected=True)["x"]),
}
seen["verdict"] = str(fit.certificate.verdict)
seen["mean error"] = float(np.max(np.abs(q.mean - mean) / true_sd))
seen["sd error"] = float(np.max(np.abs(q.sd / true_sd - 1)))
seen["cov error"] = float(np.max(np.abs(q.cov - root @ root.T) / np.outer(true_sd, true_sd)))
log_det = float(np.sum(np.log(np.diag(root))))
seen["log_prob error"] = float(abs(float(q.log_prob(mean)) + 1.5 * np.log(2 * np.pi) + log_det))
seen["elbo error"] = float(abs(fit.elbo.value - 1.5 * np.log(2 * np.pi) - log_det))
z = np.asarray(q.sample(3, shape=(2000,)))
seen["draw mean"] = ((z.mean(0) - mean) / true_sd).tolist()
seen["draw sd"] = (z.std(0) / true_sd).tolist()
x = fit.sample(3, 4000)["x"]
seen["fit.sample sd"] = (x.std(0) / true_sd).tolist()
seen["density gradient"] = kind(target.log_density(mean))
seen["summary error"] = float(np.max(np.abs(fit.summary()["mean"].to_numpy() - mean) / true_sd))
seen["check"] = str(tb.check(fit, key=9).verdict)

path = pathlib.Path(tempfile.mkdtemp()) / "fit.npz"
back = tb.load(fit.save(path), target)
seen["loaded"] = bool(np.array_equal(back.q.mean, q.mean) and back.summary().equals(fit.summary()))

# keys
cheap = lambda key: tb.fit(target, start, solver=tb.solvers.NaturalGradient(), key=key)
bits = lambda f: b"".join(np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(f.q)).hex()
draws = lambda f, key: f.sample(key, 3)["x"].tobytes().hex()
keys = {
    "int": 0,
    "numpy int": np.int64(0),
    "typed": jax.random.key(0),
    "legacy": jax.random.PRNGKey(0),
}
seen["key bits"] = {
    name: [bits(cheap(key)), draws(fit, key), np.asarray(q.sample(key)).tobytes().hex()]
    for name, key in keys.items()
}
logistic = tb.targets.zoo.logistic_regression().target
defaults = [tb.fit(logistic, key=key) for key in (7, 7, 8)]
seen["default bits"] = [bits(f) + str(f.certificate) + f.summary().to_csv() for f in defaults]
stochastic = [
    tb.fit(target, start, solver=tb.solvers.StochasticGradient(), key=k, max_steps=50)
    for k in (7, 7, 8)
]
seen["stochastic bits"] = [bits(f) for f in stochastic]

# arrays closed over in float32
design, y = (
    jnp.asarray(np.random.default_rng(0).standard_normal((40, 2)), jnp.float32),
    jnp.ones(40, jnp.float32),
)
seen["closed over"] = str(design.dtype)
regression = tb.from_log_density(
    lambda p: -0.5 * jnp.sum((y - design @ p["b"]) ** 2), {"b": np.zeros(2)}
)
closed = tb.fit(regression)
exact = np.linalg.solve(
    np.float64(design).T @ np.float64(design), np.float64(design).T @ np.float64(y)
)
seen["closed error"] = float(np.max(np.abs(closed.q.mean - exact)))
seen["closed verdict"] = [
    str(closed.certificate.verdict),
    str(closed.certificate["precision"].verdict),
]

# float32 by request
small = tb.from_log_density(
    lambda p: -0.5 * jnp.sum(((p["x"] - 3.0) / 2.0) ** 2), {"x": np.zeros(2)}
)
narrow = tb.fit(
    small,
    tb.families.Gaussian.full(2),
    solver=tb.solvers.StochasticGradient(),
    dtype="float32",
    key=1,
)
seen["float32"] = {
    "kind": kind(narrow.q.mean),
    "result": narrow.result.name,
    "mean": narrow.q.mean.tolist(),
    "sd": np.asarray(narrow.q.sd).tolist(),
    "sample": kind(narrow.q.sample(0)),
    "verdict": str(narrow.certificate.verdict),
}
seen["outside"] = str((jnp.ones(3) + 1.0).dtype)
seen["flags after"] = state()
print(json.dumps(seen))
"""


@pytest.fixture(scope="module")
def seen():
    ran = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr[-3000:]
    return json.loads(ran.stdout)


@pytest.mark.slow
def test_the_flags_are_the_users(seen):
    assert seen["flags before"]["jax_enable_x64"] == "False"
    assert seen["flags after"] == seen["flags before"]
    assert seen["outside"] == "float32", "the user's own code still runs in float32"


def test_what_comes_back_is_float64(seen):
    wide = {name: dtype for name, (_, dtype) in seen["kinds"].items()}
    assert set(wide.values()) == {"float64"}, wide
    assert seen["density gradient"][1] == "float64"
    assert seen["kinds"]["q.mean"][0] == "ndarray", "NumPy leaves, which no flag can narrow"


def test_a_gaussian_beyond_float32_is_exact(seen):
    assert seen["verdict"] == seen["check"] == "pass"
    for name in ("mean error", "sd error", "cov error", "summary error"):
        assert seen[name] < 1e-6, (name, seen[name])
    assert seen["log_prob error"] < 1e-6
    assert seen["elbo error"] < 1e-6


def test_draws_have_the_scale_of_q(seen):
    """2,000 draws: standard errors .022 sd of a mean, .016 of an sd.

    In float32 the first coordinate would take few values.
    """
    np.testing.assert_allclose(seen["draw mean"], 0.0, atol=4 * 0.0224)
    np.testing.assert_allclose(seen["draw sd"], 1.0, atol=4 * 0.0158)
    np.testing.assert_allclose(seen["fit.sample sd"], 1.0, atol=4 * 0.0112)


def test_a_saved_fit_comes_back(seen):
    assert seen["loaded"]


def test_every_kind_of_key_gives_the_same_bits(seen):
    assert len({tuple(bits) for bits in seen["key bits"].values()}) == 1


@pytest.mark.parametrize("path", ["default bits", "stochastic bits"])
def test_the_same_key_gives_the_same_bits(seen, path):
    first, again, other = seen[path]
    assert first == again
    assert first != other


def test_float32_arrays_that_are_closed_over_do_no_harm(seen):
    assert seen["closed over"] == "float32"
    assert seen["closed error"] < 1e-9
    assert seen["closed verdict"] == ["pass", "pass"]


def test_float32_by_request(seen):
    narrow = seen["float32"]
    assert narrow["kind"][1] == narrow["sample"][1] == "float32"
    assert narrow["result"] == "stationary"
    np.testing.assert_allclose(narrow["mean"], 3.0, atol=2 * 0.05)
    np.testing.assert_allclose(narrow["sd"], 2.0, rtol=0.05)
    assert narrow["verdict"] == "pass"
