"""The benchmarks' own truths and bookkeeping; what they measure is in docs/benchmarks.md."""

import importlib
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from scipy.special import logsumexp

from tightbound.targets.zoo.known import moments_on_grid

pytestmark = pytest.mark.usefixtures("as_a_user")


@pytest.fixture
def script(monkeypatch):
    """Imports a file of benchmarks/ as its scripts do."""
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")
    return importlib.import_module


def grid(name):
    """Nodes `[m, d]` on the unconstrained scale, and log of what each stands for."""
    if name == "piled_at_zero":  # x = exp(z) has a tail exp(shape z) on the left
        return np.linspace(-300.0, 10.0, 60_001)[:, None], np.log(310 / 60_000)
    if name == "ripples":
        return np.linspace(-9.0, 9.0, 20_001)[:, None], np.log(18 / 20_000)
    if (
        name == "product"
    ):  # narrower than in the target's own quadrature: one quadrant, in log a and log b
        side = np.linspace(-9.0, 3.5, 1601)
        return np.stack(np.meshgrid(side, side), -1).reshape(-1, 2), 2 * np.log(12.5 / 1600)
    side = np.linspace(-6.0, 7.5, 1351)
    return np.stack(np.meshgrid(side, side), -1).reshape(-1, 2), 2 * np.log(0.01)


@pytest.mark.parametrize("name", ["piled_at_zero", "ripples", "two_sizes"])
def test_the_truth_of_the_benchmarks_targets(script, name):
    """Against a quadrature of the target's own density."""
    fools = script("fools")
    known = (
        fools.two_sizes(2, 6.0, (1.0, 0.1), 0.95) if name == "two_sizes" else getattr(fools, name)()
    )
    z, log_cell = grid(name)
    with jax.enable_x64(True):
        log_p = np.asarray(jax.jit(jax.vmap(known.target.log_density))(z))
    values = {
        "x": z if name == "two_sizes" else np.exp(z[:, 0]) if name == "piled_at_zero" else z[:, 0]
    }
    mean, sd = moments_on_grid(log_p, values)
    np.testing.assert_allclose(mean["x"], known.mean["x"], atol=1e-6)
    np.testing.assert_allclose(sd["x"], known.sd["x"], atol=1e-6)
    assert logsumexp(log_p) + log_cell == pytest.approx(known.log_evidence, abs=1e-6)


def test_the_truth_of_the_product(script):
    """On the quadrant a, b > 0 in logarithms.

    The other branch mirrors it, and little else holds mass.
    """
    known = script("fools").product()
    u, log_cell = grid("product")
    with jax.enable_x64(True):
        log_p = np.asarray(jax.jit(jax.vmap(known.target.log_density))(np.exp(u))) + u.sum(axis=1)
    second = np.exp(logsumexp(log_p + 2 * u[:, 0]) - logsumexp(log_p))
    assert known.mean["a"] == pytest.approx(0.0, abs=1e-9)
    # outside both quadrants lies what has a b < 0: ten sds of the noise, exp(-50)
    assert known.sd["a"] == pytest.approx(np.sqrt(second), abs=1e-4)
    assert known.log_evidence == pytest.approx(np.log(2) + logsumexp(log_p) + log_cell, abs=1e-4)


def test_a_pass_with_a_mode_that_no_search_reached_is_told_from_a_wrong_pass(script):
    fools, fooled = script("fools"), script("fooled")
    known = fools.LIMITS[fools.NEEDLE]()
    row = fooled.one(fools.NEEDLE, known, seed=0)
    assert row["verdict"] == "pass"
    assert row["unseen"]
    assert row["max_error"] == pytest.approx(15 / known.sd["x"][0], abs=0.01)  # q stays at zero
    assert not fooled.wrong_pass(row)
    assert fooled.wrong_pass({**row, "unseen": False}), (
        "a pass on a wrong answer with every mode seen"
    )
    assert "| 0 of 1 | 1 | 0 | 0 | 0 | 1 |" in fooled.report(
        [{"group": "out of reach", "target": "t", "seed": 0, **row}]
    )


@pytest.mark.parametrize(
    "name",
    [
        "Gamma(0.1): infinite density at zero",
        "only a product is identified",
        "twenty modes within three sds",
        "two modes 21 sds apart, a third of the mass",
    ],
)
def test_no_pass_is_wrong(script, name):
    """A boundary, an unidentified product, a chaotic likelihood, a far mode.

    All others and 20 seeds in docs/benchmarks.md.
    """
    fooled, known = script("fooled"), script("fools").FOOLS[name]()
    for seed in (0, 1):
        row = fooled.one(name, known, seed)
        assert row["verdict"] != "pass" or row["right"], row


def test_a_record_says_what_it_belongs_to_and_fills_its_part_of_the_page(script, tmp_path):
    page, record = script("page"), script("record")
    row = {
        "family": "gaussian",
        "replicates": 4,
        "contained": 3,
        "effective": 4,
        "widest": np.float64(0.25),
        "median": 0.5,
    }
    record.write(tmp_path / "evidence.json", [row])
    rows, made = record.read(tmp_path / "evidence.json")
    assert rows == [row]
    assert made["versions"]["jax"] == jax.__version__
    text = (
        "A\n<!-- measured: evidence -->\nstale\n<!-- end -->\nB\n<!-- measured: scaling"
        " -->\nkept\n<!-- end -->\n"
    )
    filled = page.filled(text, tmp_path)
    assert "| gaussian | 3 of 4 | 4 | 0.250 | 0.5000 |" in filled
    assert "stale" not in filled
    assert "kept" in filled
    assert page.filled(filled, tmp_path) == filled
    assert record.plain({"x": np.float64(np.inf), "y": [np.int64(2)]}) == {"x": "inf", "y": [2]}


def test_seconds_are_compared_within_a_run(script):
    joined = script("tables").joined
    row = {"posterior": "p", "seed": 0, "cold": True}
    early = [
        {**row, "method": "numpyro-full-10k", "seconds": 4.0},
        {**row, "method": "other", "seconds": 2.0},
    ]
    late = [
        {**row, "method": "numpyro-full-10k", "seconds": 8.0},
        {**row, "method": "tightbound", "seconds": 1.0},
    ]
    ratios = {one["method"]: one["relative_seconds"] for one in joined([early, late])}
    assert ratios == {"numpyro-full-10k": 1.0, "other": 0.5, "tightbound": 0.125}


@pytest.fixture(autouse=True)
def _forget(monkeypatch):
    """The scripts' modules have plain names: none is to stay for other tests."""
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if name in (
            "fools",
            "fooled",
            "page",
            "record",
            "tables",
            "figures",
            "methods",
            "posteriors",
            "evidence",
        ):
            del sys.modules[name]
