"""Lanes: the host's algebra to 1e-10, its results to 1e-8, and an ELBO that never falls."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tightbound as tb
from tightbound.batch import natural as lanes
from tightbound.batch import newton as lanes_start
from tightbound.estimators.fixed_design import moment_matched, whitened_moments
from tightbound.families.gaussian import Gaussian
from tightbound.search import natural_rule, natural_search
from tightbound.search.natural_rule import arrived, design_error, natural_step, newton_model
from tightbound.starts.paths import local_roots

DIM = 3
DESIGN = moment_matched(np.random.default_rng(0), 32, DIM)


def density(row, z):
    """Skewed and correlated, no symmetry."""
    return jnp.sum(row * z - jnp.exp(z)) - 0.3 * (z[0] - z[1]) ** 2 - 0.1 * z[2] ** 4


def values_and_scores(row, points):
    values, scores = jax.vmap(jax.value_and_grad(lambda z: density(row, z)))(jnp.asarray(points))
    return np.asarray(values), np.asarray(scores)


ROWS = np.random.default_rng(1).uniform(0.5, 3.0, (5, DIM))


def test_the_algebra_under_jax_is_that_of_numpy():
    rng = np.random.default_rng(2)
    for row in ROWS[:2]:
        mean, root = rng.standard_normal(DIM), np.eye(DIM) + 0.3 * rng.standard_normal((DIM, DIM))
        moves = DESIGN @ root.T
        values, scores = values_and_scores(row, np.concatenate([mean + moves, mean - moves]))
        results = {}
        for xp in (np, jnp):
            moments = whitened_moments(DESIGN, values, scores @ root, 0.7, xp=xp)
            model = newton_model(moments.gradient, moments.curvature, xp)
            error = design_error(moments, model, xp)
            step = natural_step(xp.asarray(mean), xp.asarray(root), model, 0.7, xp)
            results[xp] = (
                *step,
                error,
                moments.elbo,
                arrived(model, model.eigenvalues, error, 0.02, xp),
            )
        for a, b in zip(results[np], results[jnp], strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-10)


def test_the_elbo_of_a_lane_never_falls_and_the_gradient_vanishes():
    lane = natural_search.begun(
        np.full((5, DIM), 2.0), np.tile(3.0 * np.eye(DIM), (5, 1, 1)), np.full(5, DIM * np.log(3.0))
    )
    step = jax.jit(lambda lane: lanes.run_lanes(density, lane, ROWS, DESIGN, 1e-3, 1))
    elbos = []
    for _ in range(80):
        lane = step(lane)
        elbos.append(np.asarray(lane.elbo))
    elbos = np.stack(elbos)
    known = np.isfinite(elbos)
    assert known[-1].all()
    assert np.all(np.diff(np.where(known, elbos, -1e300), axis=0) >= -1e-9)
    assert np.all(np.asarray(lane.status) == natural_search.SETTLED)
    # the log determinant is carried along by its changes
    np.testing.assert_allclose(
        lane.log_det, np.linalg.slogdet(np.asarray(lane.root))[1], atol=1e-10
    )
    # at rest q's mean has E_q grad log p = 0 on the design, to .3 of the design's own error
    assert np.all(
        np.sqrt(np.mean(np.asarray(lane.model.gradient) ** 2, axis=1))
        < 0.3 * np.asarray(lane.error) + 1e-3
    )


# -- one rule: the same results on the host and in lanes
# ---------------------------------------------------------------------------------------------


def gaussian(sds, correlation=0.0):
    """N(0, S) with these sds and one correlation between all coordinates."""
    sds = np.array(sds)
    cov = np.outer(sds, sds) * (correlation + (1.0 - correlation) * np.eye(len(sds)))
    precision = np.linalg.inv(cov)
    return len(sds), lambda z: -0.5 * z @ precision @ z


X = np.random.default_rng(4).standard_normal((40, 3))
TARGETS = {
    "N(0, 5e8)": gaussian([5e8]),
    "N(0, 1e-6)": gaussian([1e-6]),
    "condition 1e8": gaussian([1e-4, 1.0, 1e4], 0.5),
    "log of an exponential": (1, lambda z: z[0] - jnp.exp(z[0])),
    "quartic": (2, lambda z: -jnp.sum(z**4) - 0.5 * z[0] * z[1]),
    "t(5)": (2, lambda z: -3.5 * jnp.log1p(jnp.sum(z**2) / 5.0)),
    "logistic": (3, lambda z: -jnp.sum(jnp.logaddexp(0.0, X @ z)) - 0.05 * z @ z + z[0]),
    "bent": (2, lambda z: -0.5 * z[0] ** 2 - 2.0 * (z[1] - 0.3 * z[0] ** 2) ** 2),
    "scale of a group": (4, lambda z: -0.5 * z[0] ** 2 - 3 * z[0] - 0.5 * jnp.sum(z[1:] ** 2)
                         * jnp.exp(-2 * z[0])),
    "thousands of sds away": (2, lambda z: -0.5 * jnp.sum((z - jnp.array([3e3, -5e3])) ** 2)),
    # many steps, and extrapolations that are kept
    "t(1), far": (3, lambda z: -2.0 * jnp.log1p(jnp.sum((z - jnp.array([20.0, 1.0, 2.0])) ** 2))),
    "half a line": (1, lambda z: jnp.where(z[0] > -2.0, jnp.log(z[0] + 2.0) - z[0], -jnp.inf)),
    "flat": (2, lambda z: -0.5 * z[0] ** 2 + 0.0 * z[1]),
    "nowhere finite": (1, lambda z: jnp.nan * z[0]),
}  # fmt: skip


def target_of(dim, log_density):
    return tb.from_log_density(lambda p: log_density(p["z"]), {"z": np.zeros(dim)})


@pytest.mark.usefixtures("as_a_user")
@pytest.mark.parametrize(("dim", "log_density"), TARGETS.values(), ids=TARGETS)
def test_lanes_give_the_results_of_the_host(dim, log_density):
    """From the same start on the same design: ends, means and sds to 1e-8 of an sd."""
    assert_same_ends(on_the_host(dim, log_density), in_lanes(dim, log_density))


def on_the_host(dim, log_density):
    return tb.fit(
        target_of(dim, log_density),
        Gaussian.full(dim),
        solver=tb.solvers.NaturalGradient(max_doublings=0),
        throw=False,
    )


def in_lanes(dim, log_density):
    return tb.fit_batch(
        lambda row: target_of(dim, lambda z: log_density(z) + 0.0 * row),
        np.zeros(1),
        max_doublings=0,
        start=lambda target: Gaussian.full(dim),
        throw=False,
    )


def assert_same_ends(host, batch):
    assert batch.results == (host.result,)
    if not host.result.usable:
        assert np.isnan(batch.mean).all()
        return
    np.testing.assert_allclose((batch.mean[0] - host.q.mean) / host.q.sd, 0.0, atol=1e-8)
    np.testing.assert_allclose(batch.sd[0] / host.q.sd, 1.0, atol=1e-8)
    spread = np.outer(host.q.sd, host.q.sd)
    np.testing.assert_allclose(
        batch.root[0] @ batch.root[0].T / spread, host.q.cov / spread, atol=1e-8
    )


@pytest.mark.usefixtures("as_a_user")
def test_lanes_grow_their_design_as_the_host_does():
    """An error of more than twice `tol` makes the next design four times as large, on both."""
    dim, log_density = TARGETS["log of an exponential"]
    solver = tb.solvers.NaturalGradient(max_doublings=2)
    host = tb.fit(target_of(dim, log_density), Gaussian.full(1), solver=solver, tol=1e-3)
    batch = tb.fit_batch(
        lambda row: target_of(dim, lambda z: log_density(z) + 0.0 * row),
        np.zeros(1),
        tol=1e-3,
        max_doublings=2,
        start=lambda target: Gaussian.full(1),
    )
    assert batch.results == (host.result,)
    np.testing.assert_allclose((batch.mean[0] - host.q.mean) / host.q.sd, 0.0, atol=1e-8)


@pytest.mark.usefixtures("as_a_user")
@pytest.mark.parametrize(
    ("target", "where", "name", "value"),
    [
        ("scale of a group", natural_search, "_SHORTER", 0.41),
        ("scale of a group", natural_search, "_LONGER", 1.7),
        ("scale of a group", natural_rule, "_TRUST", 4.1),
        ("scale of a group", lanes, "FULL", dataclasses.replace(natural_rule.FULL, floor=0.26)),
        ("t(1), far", natural_search, "_FIRST_STRETCH", 4.1),
        ("t(1), far", lanes, "FULL", dataclasses.replace(natural_rule.FULL, stride=3)),
    ],
    ids=["shorter", "longer", "trust", "floor", "stretch", "stride"],
)
def test_the_comparison_sees_another_rule_in_lanes(monkeypatch, target, where, name, value):
    """Negative control: one constant of the rule, a little off in the lanes alone.

    With the same constants the ends are the same, by the test above.
    """
    dim, log_density = TARGETS[target]
    host = on_the_host(dim, log_density)
    monkeypatch.setattr(where, name, value)  # read while the lanes are traced
    other = in_lanes(dim, log_density)
    with pytest.raises(AssertionError):
        assert_same_ends(host, other)


def test_walks_end_at_the_mode():
    """d/dz (r z - exp z) = 0 at log r, without the coupling.

    The end is within a tenth of an sd (rms) of it.
    """
    decoupled = lambda row, z: jnp.sum(row * z - jnp.exp(z))  # noqa: E731
    walks = lanes_start.Walk.start(np.random.default_rng(3).uniform(-2, 2, (5, DIM)), 40)
    out = jax.jit(lambda w, rows: lanes_start.run_walks(decoupled, w, rows, 40))(walks, ROWS)
    assert np.all(out.done)
    off = (np.asarray(out.point) - np.log(ROWS)) * np.sqrt(ROWS)
    assert np.sqrt(np.mean(off**2, axis=1)).max() < 0.1
    np.testing.assert_allclose(out.path[:, -1], out.point)
    lost = lanes_start.run_walks(lambda row, z: jnp.nan * z[0], walks, jnp.asarray(ROWS), 40)
    assert np.all(lost.done)
    np.testing.assert_array_equal(lost.point, walks.point)


def test_a_walk_continues_where_it_stopped():
    walks = lanes_start.Walk.start(np.full((5, DIM), -2.0), 40)
    run = jax.jit(lanes_start.run_walks, static_argnums=(0, 3))
    whole = run(density, walks, ROWS, 40)
    for _ in range(14):
        walks = run(density, walks, ROWS, 3)
    np.testing.assert_allclose(walks.point, whole.point, atol=1e-12)
    np.testing.assert_array_equal(walks.tries, whole.tries)


def test_local_gaussians_are_those_of_the_host():
    """The root from exact second derivatives against the host's, from differences of scores over
    1e-3 sd.
    """
    row, point = ROWS[0], np.array([0.3, -0.2, 0.4])
    design = jnp.asarray(DESIGN[:16])
    root, log_det, elbo, spread, _ = lanes_start.local_gaussian(
        lambda z: density(row, z), jnp.asarray(point), 0.5, design
    )
    (host,) = local_roots(lambda x: values_and_scores(row, x), point[None])
    assert host is not None
    np.testing.assert_allclose(
        np.asarray(root) @ np.asarray(root).T, 0.25 * host @ host.T, rtol=1e-5
    )
    assert log_det == np.linalg.slogdet(np.asarray(root))[1]
    moves = DESIGN[:16] @ np.asarray(root).T
    values, _ = values_and_scores(row, np.concatenate([point + moves, point - moves]))
    np.testing.assert_allclose(
        elbo, values.mean() + log_det + 0.5 * DIM * (1 + np.log(2 * np.pi)), rtol=1e-12
    )
    np.testing.assert_allclose(
        spread, np.std(values + 0.5 * np.tile(np.sum(DESIGN[:16] ** 2, axis=1), 2)), rtol=1e-10
    )
