"""`tb.compare`.

KLs against closed forms, errors against the truth and against a reference, and what it refuses.
"""

import io

import numpy as np
import pytest

import tightbound as tb
from tightbound.account import Stage
from tightbound.families import Empirical, Gaussian, kl
from tightbound.loop import Trace
from tightbound.targets import zoo

pytestmark = pytest.mark.usefixtures("as_a_user")

KNOWN = zoo.gaussian(3, condition=25.0)
TRUTH = Gaussian.from_root(KNOWN.mean["x"], np.linalg.cholesky(KNOWN.cov))


def fitted(q, seconds=0.5):
    """A fit that says q, as it came from elsewhere."""
    empty = Trace(np.empty(0), np.empty(0), np.empty(0))
    spent = tb.Spent({"Gaussian": Stage(70, seconds)})
    return tb.Fit(q, KNOWN.target, tb.Result.converged, 3, empty, spent, (0, 1))


@pytest.fixture(scope="module")
def fits():
    draws = (
        np.random.default_rng(0).standard_normal((4, 1000, 3)) @ np.linalg.cholesky(KNOWN.cov).T
        + KNOWN.mean["x"]
    )
    return {
        "exact": fitted(TRUTH),
        "off": fitted(TRUTH.moved(KNOWN.mean["x"] + 0.5 * KNOWN.sd["x"], 0.8)),
        "chains": fitted(Empirical(draws), 9.0),
    }


@pytest.fixture(scope="module")
def against_truth(fits):
    return tb.compare(fits, truth=KNOWN)


def test_kl_both_ways_and_errors_against_the_truth(against_truth, fits):
    table, off = against_truth.table, fits["off"].q
    assert table.loc["exact", "KL(q||p)"] == pytest.approx(0.0, abs=1e-9)
    assert table.loc["exact", "KL(p||q)"] == pytest.approx(0.0, abs=1e-9)
    assert table.loc["off", "KL(q||p)"] == pytest.approx(
        kl(off, TRUTH), abs=4 * table.loc["off", "stderr"]
    )
    assert table.loc["off", "KL(p||q)"] == pytest.approx(
        kl(TRUTH, off), abs=4 * table.loc["off", "KL(p||q) stderr"]
    )
    assert table.loc["off", "KL(p||q) stderr"] < 0.1
    assert table.loc["exact", "mean error"] < 1e-9  # antithetic draws
    assert np.isnan(table.loc["chains", "KL(p||q)"])
    assert table.loc["chains", "mean error"] == pytest.approx(0.0, abs=4 / np.sqrt(4000))
    assert list(table["verdict"][["exact", "chains"]]) == ["pass", "pass"]
    assert table.loc["chains", "seconds"] == 9.0
    assert table.loc["off", "gradients"] == 70
    assert against_truth.log_evidence == (0.0, 0.0)


def test_against_a_reference_fit(fits):
    comparison = tb.compare(list(fits.values()), reference=fits["chains"])
    assert list(comparison.table.index) == ["Gaussian 1", "Gaussian 2", "Empirical"]
    assert comparison.reference == "Empirical"
    table, off = comparison.table, fits["off"].q
    assert comparison.log_evidence.value == pytest.approx(0.0, abs=1e-3)
    assert table.loc["Gaussian 2", "KL(p||q)"] == pytest.approx(
        kl(TRUTH, off), abs=4 * table.loc["Gaussian 2", "KL(p||q) stderr"]
    )
    assert table.loc["Empirical", "mean error"] == 0.0


def test_it_prints_and_draws(against_truth, tmp_path):
    assert "KL(q||p)" in str(against_truth)
    assert "Errors in sds of the truth." in str(against_truth)
    assert "<table" in against_truth._repr_html_()
    rich = pytest.importorskip("rich.console", reason="the extra for progress is not installed")
    console = rich.Console(width=200, record=True, file=io.StringIO())
    console.print(against_truth)
    assert "mean error" in console.export_text()
    pytest.importorskip("matplotlib", reason="the extra for plots is not installed")
    picture = against_truth.plot(tmp_path / "fits.svg").read_text()
    assert picture.count("LineCollection") >= 3


def test_what_it_refuses(fits):
    other = tb.from_log_density(lambda p: -0.5 * p["y"] ** 2, {"y": 0.0})
    with pytest.raises(ValueError, match="`fits` is empty"):
        tb.compare([])
    with pytest.raises(
        ValueError, match="'Gaussian 2' and 'Gaussian 1' are fits of different targets"
    ):
        tb.compare([fits["exact"], tb.fit(other)])
    with pytest.raises(
        ValueError,
        match="`reference` is none of the fits; they are called 'exact', 'off', 'chains'",
    ):
        tb.compare(fits, reference="NUTS")
