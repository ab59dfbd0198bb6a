"""Bad input through the public API: a sentence that names the argument or parameter and the way
out, and nothing lost.

The exit codes of the command line are in tests/test_cli.py.
"""

import contextlib
import json
import re
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

import tightbound as tb
from tightbound.families import Gaussian

pytestmark = pytest.mark.usefixtures("as_a_user")

NORMAL = tb.from_log_density(lambda p: -0.5 * jnp.sum((p["x"] - 3.0) ** 2), {"x": np.zeros(2)})
LOG_2PI = np.log(2 * np.pi)


def density(function, **kwargs):
    return tb.from_log_density(function, {"a": 1.0, "b": 0.0}, **kwargs)


# -- a log density that is not finite
# ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "shown"), [(jnp.nan, "is NaN at all 4"), (-jnp.inf, "is -inf or NaN at all 4")]
)
def test_nowhere_finite_is_an_error_with_the_way_out(value, shown):
    with pytest.raises(tb.TargetError, match=shown) as error:
        tb.fit(density(lambda p: value + p["a"] + p["b"]))
    assert "Check the data for NaN" in str(error.value)
    assert "`support`" in str(error.value)
    assert "It becomes finite" not in str(error.value), "no single parameter decides"


def test_not_finite_at_the_start_names_the_parameter_that_decides():
    target = density(lambda p: jnp.log(p["a"] - 5.0) - p["a"] - 0.5 * p["b"] ** 2)
    with pytest.raises(
        tb.TargetError,
        match="It becomes finite when `a` is moved to 10: does that parameter need a `support`",
    ):
        tb.fit(target)


def test_a_gradient_that_is_not_finite_at_the_start_names_the_parameter():
    def root_of_nothing(p):
        return -0.5 * p["b"] ** 2 - 0.5 * p["a"] ** 2 + jnp.sqrt(0.0 * p["a"])

    with pytest.raises(tb.TargetError, match="its gradient is not, in: a. Look for a square root"):
        tb.fit(density(root_of_nothing))


def test_a_start_of_the_callers_own_gets_past_it():
    """A density finite only beyond a = 5, where no dispersed start falls: N(60, 1) there."""
    target = density(
        lambda p: jnp.where(p["a"] > 5.0, -0.5 * (p["a"] - 60.0) ** 2, -jnp.inf) - 0.5 * p["b"] ** 2
    )
    with pytest.raises(tb.TargetError, match="give an `example` at which the density is finite"):
        tb.fit(target)
    fit = tb.fit(target, Gaussian.full(2).moved([50.0, 1.0]))
    assert fit.result is tb.Result.converged
    np.testing.assert_allclose(fit.q.mean, [60.0, 0.0], atol=0.02)


@pytest.mark.parametrize("dim", [3, 400])
def test_an_example_is_a_start_where_no_other_is(dim):
    """N(50, 1) between 40 and 60, NaN elsewhere.

    No dispersed start is finite, the user's example is.
    """

    def inside(p):
        return jnp.where(
            jnp.all(jnp.abs(p["a"] - 50.0) < 10.0), -0.5 * jnp.sum((p["a"] - 50.0) ** 2), jnp.nan
        )

    fit = tb.fit(tb.from_log_density(inside, {"a": np.full(dim, 49.0)}))
    np.testing.assert_allclose(fit.q.mean, 50.0, atol=0.02)
    np.testing.assert_allclose(fit.q.sd, 1.0, rtol=1e-3)


def test_not_finite_in_places_fits_and_is_found():
    """A standard normal whose upper tail is NaN.

    The draws that fall there are counted, P(N(0, 1) > 2) = .02275 of them.
    """
    target = density(
        lambda p: jnp.where(p["a"] > 2.0, jnp.nan, -0.5 * p["a"] ** 2) - 0.5 * p["b"] ** 2
    )
    fit = tb.fit(target, Gaussian.full(2), solver=tb.solvers.Laplace())
    assert fit.result is tb.Result.converged
    np.testing.assert_allclose(fit.q.mean, 0.0, atol=1e-3)
    finding = fit.certificate["finite"]
    assert finding.verdict == "fail"
    assert finding.value / 4000 == pytest.approx(0.02275, abs=4 * np.sqrt(0.02275 / 4000))
    assert finding.where[0] == "`a`"
    assert fit.certificate.verdict == "fail"


def test_a_truncation_that_no_support_declares_is_never_a_pass():
    fit = tb.fit(
        density(
            lambda p: jnp.where(p["a"] > 0.0, -0.5 * p["a"] ** 2, -jnp.inf) - 0.5 * p["b"] ** 2
        ),
        throw=False,
    )
    assert fit.certificate.verdict != "pass"
    assert fit.certificate["finite"].verdict != "pass"


def test_no_usable_approximation_raises_with_the_fit_in_the_error():
    """Finite at the start only: every step leads where the density is NaN."""
    target = density(
        lambda p: jnp.where((p["a"] == 0.5) & (p["b"] == 0.25), p["a"] + p["b"], jnp.nan)
    )
    start = Gaussian.full(2).moved([0.5, 0.25])
    with pytest.raises(tb.FitError, match="pass `support`") as error:
        tb.fit(target, start, solver=tb.solvers.NaturalGradient())
    assert error.value.fit.result is tb.Result.nonfinite
    np.testing.assert_array_equal(error.value.fit.q.mean, start.mean)
    fit = tb.fit(target, start, solver=tb.solvers.NaturalGradient(), throw=False)
    assert fit.result is tb.Result.nonfinite


# -- a log density that returns the wrong thing
# -----------------------------------------------------------------------

RETURNS = {
    "a vector": (
        lambda p: p["x"],
        r"returned shape \(2,\), but a log density is one number in nats. Sum over",
    ),
    "a Python float": (
        lambda p: 1.0,
        "returned the constant 1.0, which does not depend on the parameters",
    ),
    "float()": (lambda p: float(p["x"][0]), "JAX cannot trace `log_density`"),
    "NumPy inside": (
        lambda p: np.sum(np.log(np.asarray(p["x"]))),
        "JAX cannot trace `log_density`",
    ),
    "an integer": (
        lambda p: jnp.sum(p["x"] > 0),
        "returned dtype int64, but a log density is a floating number",
    ),
    "None": (lambda p: None, "returned None; is its `return` missing"),
    "a dict": (lambda p: {"lp": p["x"][0]}, "returned a dict; it must return one number"),
}


@pytest.mark.parametrize("name", RETURNS)
def test_what_a_log_density_may_not_return(name):
    function, sentence = RETURNS[name]
    with pytest.raises(tb.TargetError, match=sentence):
        tb.from_log_density(function, {"x": np.zeros(2)})


# -- supports, data
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("support", "sentence"),
    [
        (
            {"sigm": "positive"},
            (
                "`support` names 'sigm', which is not in `example`. Its names: sigma. Did you mean"
                " 'sigma'"
            ),
        ),
        ({"sigma": "positiv"}, r"`support\['sigma'\]` is 'positiv'.*Did you mean 'positive'"),
        ({"sigma": (2.0, 3.0)}, r"`example\['sigma'\]` = 1. is not inside its support"),
        ({"sigma": (3.0, 2.0)}, "low must be below high"),
        ({"sigma": 3}, "A support is one of the names real, positive"),
    ],
)
def test_wrong_supports(support, sentence):
    with pytest.raises(tb.TargetError, match=sentence):
        tb.from_log_density(lambda p: -(p["sigma"] ** 2), {"sigma": 1.0}, support=support)


def test_a_parameter_that_is_missing_or_unused():
    with pytest.raises(tb.TargetError, match="raised KeyError: 'sigm'.*Did you mean 'sigma'"):
        tb.from_log_density(lambda p: -(p["sigm"] ** 2), {"sigma": 1.0})
    with pytest.raises(
        tb.TargetError, match="does not depend on 'b'.*Give it a prior, or leave it out"
    ):
        tb.from_log_density(lambda p: -(p["a"] ** 2), {"a": 1.0, "b": 0.0})


def test_nan_in_the_data_of_rows_names_the_row():
    with pytest.raises(tb.TargetError, match=r"`data\['y'\]` has NaN in row 1. Drop or impute"):
        tb.from_rows(
            lambda p: 0.0,
            lambda p, r: -((r["y"] - p["m"]) ** 2),
            {"y": np.array([1.0, np.nan])},
            {"m": 0.0},
        )


def test_nan_in_data_that_are_closed_over_is_asked_for():
    y = np.array([1.0, np.nan])
    with pytest.raises(tb.TargetError, match="Check the data for NaN"):
        tb.fit(tb.from_log_density(lambda p: -jnp.sum((y - p["m"]) ** 2), {"m": 0.0}))


# -- an improper posterior
# --------------------------------------------------------------------------------------------

FLAT = {
    "no prior at all": (lambda p: -0.5 * p["a"] ** 2 + 0.0 * p["b"], {}, ("b",)),
    "growing": (lambda p: -0.5 * p["a"] ** 2 + p["b"], {}, ("b",)),
    "flat on one side": (lambda p: -0.5 * p["a"] ** 2 - jnp.logaddexp(0.0, -p["b"]), {}, ("b",)),
    "only the sum is known": (lambda p: -0.5 * (p["a"] + p["b"]) ** 2, {}, ("a", "b")),
    "an interval and a flat one": (
        lambda p: jnp.log(p["a"]) + 0.0 * p["b"],
        {"a": (0.0, 3.0)},
        ("b",),
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", FLAT)
def test_an_improper_posterior_is_unbounded_and_the_certificate_names_the_parameter(name):
    function, support, names = FLAT[name]
    fit = tb.fit(
        density(function, support=support) if not support else _on(support, function), key=1
    )
    assert fit.result is tb.Result.unbounded
    assert not fit.result.ok
    assert "named in the certificate" in str(fit.result)
    finding = fit.certificate["proper"]
    assert finding.verdict == fit.certificate.verdict == "fail"
    assert set(finding.where) == set(names)
    for word in names:
        assert f"`{word}`" in finding.why
    assert "a proper prior, or fix" in finding.why
    assert finding.why in fit.certificate.explain()


def _on(support, function):
    return tb.from_log_density(function, {"a": 2.0, "b": 0.0}, support=support)


def test_a_solver_of_the_callers_choice_names_it_too():
    target = density(lambda p: -0.5 * p["a"] ** 2 + 0.0 * p["b"])
    fit = tb.fit(target, solver=tb.solvers.NaturalGradient())
    assert fit.result is tb.Result.unbounded
    assert fit.certificate["proper"].where == ("b",)


@pytest.mark.slow
def test_heavy_tails_are_not_called_improper():
    """A Cauchy posterior: no mean, but proper; the density falls off as x^-2."""
    target = tb.from_log_density(lambda p: -jnp.sum(jnp.log1p(p["x"] ** 2)), {"x": np.zeros(2)})
    fit = tb.fit(target, throw=False)
    assert fit.certificate.verdict != "pass"
    assert "proper" not in fit.certificate
    assert fit.result is not tb.Result.unbounded


# -- dimensions, targets, parts, numbers
# ------------------------------------------------------------------------------


def test_one_dimension_works():
    fit = tb.fit(tb.from_log_density(lambda p: -0.5 * (p - 3.0) ** 2 / 0.25, 0.0))
    assert fit.certificate.verdict == "pass"
    np.testing.assert_allclose(fit.q.mean, [3.0], atol=1e-8)
    np.testing.assert_allclose(fit.q.sd, [0.5], rtol=1e-6)
    assert fit.elbo.value == pytest.approx(0.5 * LOG_2PI + np.log(0.5), abs=1e-9)
    assert list(fit.summary().index) == ["z"]


@pytest.mark.parametrize(
    ("example", "support", "sentence"),
    [
        ({}, None, "`example` has no values, so there is nothing to infer. Pass for instance"),
        ({"w": np.ones(1)}, {"w": "simplex"}, "have no free coordinate"),
        ({"w": np.ones((0, 3))}, None, "that is, no elements; leave it out"),
    ],
)
def test_zero_dimensions_are_an_error(example, support, sentence):
    with pytest.raises(tb.TargetError, match=sentence):
        tb.from_log_density(lambda p: 0.0, example, support=support)


@pytest.mark.parametrize(
    "key", ["0", 1.0, None, True, np.zeros(2), np.zeros((3, 2), np.uint32), [0, 1]]
)
def test_a_key_of_the_wrong_kind(key):
    with pytest.raises(TypeError, match="`key` must be an int, a key from jax.random.key"):
        tb.fit(NORMAL, key=key)


@pytest.mark.parametrize(
    "call", [lambda f, k: f.sample(k), lambda f, k: f.q.sample(k), lambda f, k: tb.check(f, key=k)]
)
def test_a_key_of_the_wrong_kind_elsewhere(call):
    with pytest.raises(TypeError, match="`key` must be an int"):
        call(_cheap(), "seed")


def _cheap():
    return tb.fit(NORMAL, solver=tb.solvers.Laplace())


# Values of another type than annotated: tried in a process of its own, because the tests' runtime
# type checks come first.

WRONG_TYPES = {
    "tb.fit(None)": (
        "TargetError: fit: `target` must be a tightbound target, got NoneType. Make one with"
        " tb.from_log_density"
    ),
    "tb.fit(lambda p: 0.0)": "TargetError: fit: `target` must be a tightbound target, got function",
    "tb.fit(tb.targets.LogDensity)": "TargetError: fit: `target` must be a tightbound target",
    "tb.fit(normal, tol='fine')": (
        "ValueError: fit: `tol` must be a positive number of posterior standard deviations, got"
        " 'fine'"
    ),
    "tb.fit(normal, tol=True)": "ValueError: fit: `tol` must be",
    "tb.fit(normal, tol=0)": "ValueError: fit: `tol` must be",
    "tb.fit(normal, max_steps=1e4)": (
        "ValueError: fit: `max_steps` must be a positive integer or None, got 10000.0"
    ),
    "tb.fit(normal, starts=True)": "ValueError: fit: `starts` must be a positive integer",
    "tb.fit(normal, budget=10)": (
        "TypeError: fit: `budget` must be tb.Budget(seconds=..., evaluations=...) or None, got 10"
    ),
    "tb.Budget(evaluations='many')": (
        "ValueError: Budget: `evaluations` must be positive or None (no limit), got 'many'"
    ),
    "tb.Budget(seconds=0)": "ValueError: Budget: `seconds` must be positive",
    "tb.fit(normal, key=0.5)": (
        "TypeError: `key` must be an int, a key from jax.random.key(seed), or a legacy"
    ),
    "fit.sample(0, 2.5)": "ValueError: sample: `n` must be a positive integer, got 2.5",
    "fit.sample(0, None)": "ValueError: sample: `n` must be a positive integer",
    "tb.from_log_density(lambda p: -p['s'], {'s': 1.0}, support='positive')": (
        "TargetError: `support` must be a dict"
    ),
    "tb.from_log_density(3, {'s': 1.0})": (
        "TargetError: `log_density` must be a function of the parameters, got int"
    ),
    "tb.from_rows(lambda p: 0.0, None, {'y': [1.0]}, {'s': 1.0})": (
        "TargetError: `log_likelihood` must be a function"
    ),
    "tb.load('/nonexistent/fit.npz', normal)": (
        "FileNotFoundError: The fit '/nonexistent/fit.npz' cannot be read"
    ),
}

PROGRAM = """
import json, sys
import tightbound as tb

normal = tb.from_log_density(lambda p: -0.5 * (p["x"] - 3.0) ** 2, {"x": 0.0})
fit = tb.fit(normal, solver=tb.solvers.Laplace())
said = {}
for code in json.load(sys.stdin):
    try:
        said[code] = repr(eval(code))
    except Exception as error:
        said[code] = f"{type(error).__name__}: {error}"
print(json.dumps(said))
"""


@pytest.fixture(scope="module")
def said():
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        input=json.dumps(list(WRONG_TYPES)),
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(ran.stdout)


@pytest.mark.parametrize("code", WRONG_TYPES)
def test_values_of_the_wrong_type(said, code):
    assert said[code].startswith(WRONG_TYPES[code])


BAD_NUMBERS = [
    ({"tol": 0.0}, "`tol` must be a positive number of posterior standard deviations, got 0.0"),
    ({"tol": np.nan}, "`tol` must be"),
    ({"tol": np.inf}, "`tol` must be"),
    ({"max_steps": 0}, "`max_steps` must be a positive integer or None, got 0"),
    ({"starts": -1}, "`starts` must be a positive integer"),
    ({"dtype": "float16"}, "`dtype` must be 'float64' .* or 'float32', got 'float16'"),
    ({"dtype": "double precision"}, "`dtype` must be 'float64'"),
]


@pytest.mark.parametrize(("arguments", "sentence"), BAD_NUMBERS, ids=lambda v: str(v)[:30])
def test_numbers_that_make_no_sense(arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        tb.fit(NORMAL, **arguments)


@pytest.mark.parametrize("limits", [{"evaluations": 0}, {"seconds": -1.0}, {"seconds": np.nan}])
def test_budgets_that_make_no_sense(limits):
    with pytest.raises(
        ValueError, match=f"Budget: `{next(iter(limits))}` must be positive or None"
    ):
        tb.Budget(**limits)


BAD_PARTS = [
    ({"q": 3}, "`q` must be a member of a family.* or an earlier `fit.q`.* got int"),
    ({"q": Gaussian}, "got the class Gaussian: call it"),
    (
        {"q": Gaussian.full(3)},
        r"`q` has 3 dimensions, but the target has 2 unconstrained coordinates: x\[0\], x\[1\]",
    ),
    ({"solver": tb.solvers.Laplace}, "`solver` must be a solver.* got the class Laplace: call it"),
    (
        {"objective": tb.objectives.ELBO},
        "`objective` must be an objective.* got the class ELBO: call it",
    ),
    ({"objective": tb.solvers.Laplace()}, "`objective` must be an objective.* got Laplace"),
    (
        {"objective": tb.objectives.IWELBO(5), "solver": tb.solvers.NaturalGradient()},
        "maximises the ELBO and nothing else",
    ),
    (
        {"q": Gaussian.low_rank(2, 1), "solver": tb.solvers.NaturalGradient()},
        "full or diagonal scale",
    ),
]


@pytest.mark.parametrize(
    ("arguments", "sentence"), BAD_PARTS, ids=lambda v: str(v)[:40].replace("\n", " ")
)
def test_parts_that_do_not_fit(arguments, sentence):
    with pytest.raises(tb.PairingError, match=sentence):
        tb.fit(NORMAL, **arguments)


def test_an_earlier_fit_in_place_of_its_q_and_a_q_of_nan():
    with pytest.raises(tb.PairingError, match="an earlier `fit.q`"):
        tb.fit(NORMAL, _cheap())
    with pytest.raises(ValueError, match="`q` holds NaN or infinite numbers"):
        tb.fit(NORMAL, Gaussian.full(2).moved([np.nan, 0.0]))


@pytest.mark.parametrize("n", [0, -1])
def test_a_number_of_draws_that_makes_no_sense(n):
    with pytest.raises(ValueError, match="`n` must be a positive integer"):
        _cheap().sample(0, n)


# -- interruption
# --------------------------------------------------------------------------------------------------


class AfterCalls:
    """Wraps a method or function and presses Ctrl-C at its `count`-th call."""

    def __init__(self, inner, count):
        self.inner, self.left = inner, count

    def __get__(self, instance, owner):
        return lambda *args, **kwargs: self(instance, *args, **kwargs)

    def __call__(self, *args, **kwargs):
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt
        return self.inner(*args, **kwargs)


BENT = tb.from_log_density(
    lambda p: -0.5 * p["a"] ** 2 - 2.0 * (p["b"] - p["a"] ** 2) ** 2, {"a": 0.0, "b": 0.0}
)


def test_ctrl_c_in_a_step_returns_the_last_state(monkeypatch):
    monkeypatch.setattr(
        tb.solvers.NaturalGradient, "step", AfterCalls(tb.solvers.NaturalGradient.step, 3)
    )
    fit = tb.fit(BENT, Gaussian.full(2), key=1)  # the default's own start takes such steps as well
    assert fit.result is tb.Result.interrupted
    assert fit.steps == len(fit.trace.loss) == 2
    monkeypatch.undo()
    again = tb.fit(BENT, Gaussian.full(2), key=1, solver=tb.solvers.NaturalGradient(), max_steps=2)
    np.testing.assert_array_equal(fit.q.mean, again.q.mean)
    assert fit.certificate.verdict in ("caution", "fail")


CLIMB = [("attempt", "judge"), ("climb", "certify"), ("attempt", "fresh_sample")]


@pytest.mark.parametrize(("module", "function"), CLIMB)
def test_ctrl_c_while_it_is_judged_keeps_the_first_fit(monkeypatch, module, function):
    ladder = sys.modules[f"tightbound.plan.{module}"]
    monkeypatch.setattr(ladder, function, AfterCalls(getattr(ladder, function), 1))
    fit = tb.fit(NORMAL)
    assert fit.result is tb.Result.interrupted
    assert "interrupted" in fit.rung
    np.testing.assert_allclose(fit.q.mean, 3.0, atol=1e-6)
    monkeypatch.undo()
    assert fit.certificate.verdict == "pass", "computed when asked for"
    assert fit.summary()["mean"].to_numpy() == pytest.approx(3.0, abs=1e-6)


def test_ctrl_c_in_a_higher_rung_ends_the_climb(monkeypatch):
    step = AfterCalls(tb.solvers.NestedPair.step, 2)
    monkeypatch.setattr(tb.solvers.NestedPair, "step", step)
    fit = tb.fit(BENT, key=1)
    assert fit.result is tb.Result.interrupted
    assert isinstance(fit.q, Gaussian)
    assert step.left == 0, "no step was taken after it"
    gaussian = tb.fit(BENT, key=1, solver=tb.solvers.NaturalGradient())
    np.testing.assert_array_equal(fit.q.mean, gaussian.q.mean)


def test_ctrl_c_during_compiled_steps(monkeypatch):
    presses = iter([False, False, True])

    def show(steps, loss, note):
        if next(presses):
            raise KeyboardInterrupt

    fit_module = sys.modules["tightbound.fit"]
    monkeypatch.setattr(fit_module, "display", lambda *_: contextlib.nullcontext(show))
    fit = tb.fit(NORMAL, Gaussian.full(2), solver=tb.solvers.StochasticGradient(), tol=1e-6)
    assert fit.result is tb.Result.interrupted
    assert fit.steps == 600
    np.testing.assert_allclose(fit.q.mean, 3.0, atol=0.5)


# -- files
# --------------------------------------------------------------------------------------------------


def test_a_report_that_cannot_be_written(tmp_path):
    pytest.importorskip("matplotlib")
    fit = _cheap()
    missing = tmp_path / "no" / "report.html"
    with pytest.raises(
        OSError, match=re.escape(f"The report cannot be written to '{missing}'")
    ) as error:
        fit.report(missing)
    assert "create it, or pass a path in a folder that does. Nothing is lost" in str(error.value)
    with pytest.raises(OSError, match="It is a folder"):
        fit.report(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_saved_file_that_is_truncated_or_of_another_target(tmp_path):
    path = _cheap().save(tmp_path / "fit.npz")
    other = tb.from_log_density(lambda p: -jnp.sum(p["y"] ** 2), {"y": np.zeros(2)})
    with pytest.raises(
        ValueError,
        match=r"belongs to another target: its coordinate 0 is called 'x\[0\]', that of `target`",
    ):
        tb.load(path, other)
    with pytest.raises(ValueError, match="has 2 coordinates .* but `target` has 1"):
        tb.load(path, tb.from_log_density(lambda p: -(p**2), 0.0))
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ValueError, match="is truncated or damaged"):
        tb.load(path, NORMAL)
    with pytest.raises(FileNotFoundError, match=r"Pass the path that fit.save\(path\) wrote"):
        tb.load(tmp_path / "none.npz", NORMAL)
