"""The benchmarks' own truths and bookkeeping; what they measure is in docs/benchmarks.md."""

import ast
import graphlib
import importlib
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from scipy.special import logsumexp

from tightbound.targets.zoo.known import moments_on_grid

pytestmark = pytest.mark.usefixtures("as_a_user")

SCRIPTS = {path.stem: path for path in (Path(__file__).parents[1] / "benchmarks").glob("*.py")}


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


@pytest.mark.slow
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


def measured(regression, **changed):
    usual = {"imports": 1.0, "cold": 2.0, "warm": 0.5, "evaluations": 100}
    return regression.Measured(**{**usual, "verdicts": "pass, pass", "bits": "a", **changed})


def test_two_checkouts_are_compared_by_ratios_within_a_pair(script):
    regression = script("regression")
    # Each pair ran on a busier machine than the pair before it.
    pairs = [
        (
            measured(regression, cold=busy * 2.0, warm=busy * 0.5),
            measured(regression, cold=busy * 2.0 * slower, warm=busy * 0.5, evaluations=150),
        )
        for busy, slower in ((1.0, 2.0), (10.0, 1.0), (100.0, 1.5))
    ]
    row = dict(zip(regression.HEAD, regression.row("a case", pairs), strict=True))
    assert row == {
        "case": "a case",
        "cold fit": "1.500 (1.000–2.000)",
        "warm fit": "1.000 (1.000–1.000)",
        "import": "1.000 (1.000–1.000)",
        "process": "1.398 (1.000–1.571)",
        "evaluations": "1.500",
        "verdicts of base": "pass, pass",
        "verdicts of head": "pass, pass",
        "bits of q": "equal",
    }


@pytest.mark.parametrize("kind", ["cold", "warm"])
def test_a_regression_is_a_median_ratio_above_the_limit(script, kind):
    regression = script("regression")
    seconds = (1.0, 1.2, 9.0)
    pairs = [
        (measured(regression, **{kind: 1.0}), measured(regression, **{kind: s})) for s in seconds
    ]
    assert regression.faults("a case", pairs, limit=1.3) == []
    assert regression.faults("a case", pairs, limit=1.1) == [
        f"a case: the {kind} fit takes 1.200 times as long; the limit is 1.100."
    ]


def test_another_verdict_is_a_regression_and_other_bits_are_not(script):
    regression = script("regression")
    base, head = measured(regression), measured(regression, bits="b", imports=9.0, evaluations=900)
    assert regression.faults("a case", [(base, head)], limit=1.05) == []
    assert regression.row("a case", [(base, base)])[-1] == "equal"
    assert regression.row("a case", [(base, base), (base, head)])[-1] == "differ"
    other = measured(regression, verdicts="pass, fail")
    assert regression.faults("a case", [(base, base), (base, other)], limit=1.05) == [
        'a case: base says "pass, pass"; head says "pass, fail or pass, pass".'
    ]


def test_the_digest_of_q_is_of_every_bit(script):
    digest = script("regression_worker").digest
    x = np.array([0.1, 0.2])
    assert digest([{"x": x}]) == digest([{"x": x.copy()}])
    changed = np.array([0.1, np.nextafter(0.2, 1.0)])
    assert digest([{"x": x}]) != digest([{"x": changed}])
    assert digest([{"x": x}]) != digest([{"x": x[:, None]}])


def benchmark_imports(path):
    """The files of benchmarks/ that a file imports, inside its functions too."""
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in nodes if isinstance(node, ast.ImportFrom)}
    return names & SCRIPTS.keys()


def test_no_benchmark_imports_itself_by_way_of_others():
    graph = {name: benchmark_imports(path) for name, path in SCRIPTS.items()}
    assert graph["methods"] >= {"answers", "pymc_methods"}
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle


@pytest.fixture(autouse=True)
def _forget():
    """The scripts' modules have plain names: none is to stay for other tests."""
    before = set(sys.modules)
    yield
    for name in (set(sys.modules) - before) & SCRIPTS.keys():
        del sys.modules[name]
