"""The forward-KL reproductions in a tiny form.

The parts that carry their claims, against known truth.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from tightbound.experiments import (
    REGISTRY,
    OptionError,
    clustering,
    digits,
    local_optimum,
    ntk_widths,
    rotated_digits,
    run,
)
from tightbound.families import Gaussian, kl

MNIST = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "mnist"


def test_they_are_registered():
    assert set(REGISTRY) >= {"ntk-widths", "clustering", "local-optimum", "rotated-digits"}


@pytest.fixture(scope="module")
def widths():
    return ntk_widths.run(sizes=((16, 256), 2000))


def test_the_best_von_mises_is_the_moment_match():
    import scipy.special as sp

    assert pytest.approx(4.57508, abs=1e-5) == ntk_widths.KAPPA
    length = sp.ive(1, ntk_widths.KAPPA) / sp.ive(0, ntk_widths.KAPPA)
    assert length == pytest.approx(np.exp(-(ntk_widths.SD**2) / 2), abs=1e-12)


@pytest.mark.slow
def test_wider_networks_are_nearer_to_the_optimum(widths):
    rows = {(r["width"], r["linear"]): r for r in widths.tables["widths"]}
    assert rows[256, False]["excess"] < rows[16, False]["excess"]
    assert rows[256, False]["distance"] < rows[16, False]["distance"]
    assert rows[256, False]["drift"] < rows[16, False]["drift"]
    # nothing is better than the best von Mises
    assert all(r["excess"] > -0.01 for r in rows.values())
    optimum = widths.tables["optimum"][0]
    assert optimum["exact"] < optimum["best von Mises"] < optimum["exact"] + 0.005
    assert set(ntk_widths.figures(widths)) == {"widths"}


@pytest.mark.slow
def test_the_exact_posterior_of_the_clusters_is_that_of_its_density():
    """Known labels.

    The gradient of the log density vanishes at the mean, and its Hessian is minus the precision.
    """
    with jax.numpy_rank_promotion("allow"):
        target = clustering.model(60)
        x, z = clustering.observed(target, 1)
        x = np.asarray(x[0], np.float64)
        exact = clustering.exact_posterior(x, z[0])
        density = target.at(x).log_density
        np.testing.assert_allclose(jax.grad(density)(jnp.asarray(exact.mean)), 0.0, atol=1e-6)
        precision = -np.asarray(jax.hessian(density)(jnp.asarray(exact.mean)))
    np.testing.assert_allclose(np.linalg.inv(precision), exact.cov, rtol=1e-6, atol=1e-9)
    assert exact.sd[0] == pytest.approx(0.224, abs=0.005)
    assert kl(exact, exact) == pytest.approx(0.0, abs=1e-9)


@pytest.mark.slow
def test_clustering_runs_and_scores():
    result = clustering.run(sizes=(2, 30, 300, 20, 5, 3), forms=("mean",))
    rows = {(r["method"], r["form"]): r for r in result.tables["methods"]}
    methods = {"forward KL", "ELBO", "IWELBO", "softmax-weighted"}
    starts, refined = ("ELBO, best of 3 starts", "mean"), ("forward KL, then refined", "full")
    assert set(rows) == {(m, "mean") for m in methods} | {starts, refined}
    assert all(
        row["median KL(p || q)"] > row["least KL(p || q) of the family"] - 1e-6
        for row in rows.values()
    )
    assert len(result.claims) == 5
    assert set(clustering.figures(result)) == {"modes"}


def test_the_refinement_of_a_rough_answer_is_the_exact_posterior():
    with jax.numpy_rank_promotion("allow"):
        target = clustering.model(60)
        x, z = clustering.observed(target, 1)
        start = [
            Gaussian.diagonal(6).moved(
                np.concatenate([[97.0], z[0] + np.array([1.0, -1.0, 0.5, 1.5, -0.7])]), 1.3
            )
        ]
        (found,) = clustering._refined(target, x, start)
    assert kl(
        clustering.exact_posterior(np.asarray(x[0], np.float64), z[0]), found
    ) == pytest.approx(0.0, abs=1e-6)


def test_rotation_by_a_quarter_turn_is_exact_and_by_nothing_none():
    pictures = jnp.asarray(np.random.default_rng(0).uniform(size=(2, 8, 8)))
    np.testing.assert_allclose(digits.rotate(pictures, jnp.array(0.0)), pictures, atol=1e-12)
    np.testing.assert_allclose(
        digits.rotate(pictures, jnp.array(np.pi / 2)), np.rot90(pictures, 1, (1, 2)), atol=1e-12
    )
    assert digits.away([350.0, 100.0], 10.0).tolist() == [20.0, 90.0]


def test_data_that_are_not_mnist_are_refused(tmp_path):
    with pytest.raises(OptionError, match="there is no train-images-idx3-ubyte.gz"):
        run("local-optimum", data=tmp_path)


@pytest.mark.skipif(
    not (MNIST / "train-images-idx3-ubyte.gz").exists(),
    reason="needs MNIST in ../shared/data/mnist",
)
def test_mnist_is_read_and_its_rotation_found_on_the_grid():
    pictures, source = digits.images(MNIST)
    assert source == "MNIST"
    assert pictures.shape == (20_000, 28, 28)
    assert round(pictures[0].sum() * 255) == 27_525  # the first image, a five
    clean = jnp.asarray(pictures[:6], jnp.float32)
    turned = digits.rotate(clean, jnp.float32(np.radians(local_optimum.TRUE)))
    angles, log_p = local_optimum.profile(clean, turned)
    assert angles[np.argmax(log_p)] == local_optimum.TRUE
    elbo = local_optimum.smoothed(log_p, local_optimum.SD)
    assert (
        digits.away(
            max(local_optimum.maxima(elbo), key=lambda a: elbo[round(2 * a)]), local_optimum.TRUE
        )
        < 10
    )


def test_the_landscape_is_exact():
    """Smoothing on the grid against quadrature, and ascents that end in its maxima."""
    angles = np.arange(720) * 0.5
    values = np.cos(np.radians(angles)) + 0.8 * np.cos(2 * np.radians(angles))
    smooth = local_optimum.smoothed(values, 0.5)
    expected = np.exp(-0.125) * np.cos(np.radians(angles)) + 0.8 * np.exp(-0.5) * np.cos(
        2 * np.radians(angles)
    )
    np.testing.assert_allclose(smooth, expected, atol=1e-8)
    peaks = local_optimum.maxima(values)
    assert peaks == [0.0, 180.0]
    assert {local_optimum.ascend(values, 30.0 * i) for i in range(12)} == {0.0, 180.0}


def test_the_divergences_are_those_of_gaussians():
    offsets = np.radians((np.arange(720) * 0.5 - 250.0 + 180) % 360 - 180)
    found = local_optimum._divergences(-0.5 * (offsets / 0.3) ** 2, 260.0)
    shift = np.radians(10.0)
    expected = np.log(0.5 / 0.3) + 0.5 * (0.09 + shift**2) / 0.25 - 0.5
    assert found["KL(p || q)"] == pytest.approx(expected, abs=1e-5)
    assert found["-log q at the truth"] == pytest.approx(np.log(0.5 * np.sqrt(2 * np.pi)), abs=1e-6)


@pytest.mark.slow
def test_the_digits_experiments_run_end_to_end():
    pytest.importorskip("sklearn")
    result = local_optimum.run(sizes=(4, 12, 60, 2))
    assert len(result.tables["ends"]) == 13
    assert result.tables["landscape"][0]["log_p"] < max(
        r["log_p"] for r in result.tables["landscape"]
    )
    best = max(result.tables["landscape"], key=lambda r: r["log_p"])
    # the exact posterior knows the angle, whatever was trained
    assert best["angle"] == pytest.approx(260.0, abs=1.0)
    turned = rotated_digits.run(sizes=(2, 4, 10, 60, 10, 2, 4, 25.0))
    assert {r["method"] for r in turned.tables["ends"]} == {"forward KL", "IWELBO"}
    assert set(rotated_digits.figures(turned)) == {"ways"}
    assert set(local_optimum.figures(result)) == {"landscape"}


@pytest.mark.slow
def test_the_starts_of_the_rotation_differ_as_published():
    with jax.numpy_rank_promotion("allow"):
        inner = rotated_digits.encoders.ConvNet.make(
            (3, 12, 12), 2, jr.key(0), channels=(2,), width=4, images=True
        )
        x = jnp.zeros((3, 12, 12))
        out = [np.asarray(rotated_digits.Turned(inner, jnp.array(a))(x)) for a in (0.0, 2.0)]
    np.testing.assert_allclose(
        np.arctan2(out[1][1], out[1][0]) - np.arctan2(out[0][1], out[0][0]), 2.0, atol=1e-9
    )
