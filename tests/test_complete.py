"""Every concrete class is exported, documented and in a battery; the promised public names exist."""

import dataclasses
import importlib
import importlib.util
import inspect
import pkgutil
from pathlib import Path

import equinox as eqx
import pytest

import tightbound as tb
from tightbound.estimators.base import AbstractEstimator
from tightbound.families.base import AbstractFamily
from tightbound.objectives.base import AbstractObjective
from tightbound.solvers.base import AbstractSolver
from tightbound.targets.base import AbstractTarget

TESTS = Path(__file__).parent
KINDS = {
    "families": AbstractFamily,
    "objectives": AbstractObjective,
    "estimators": AbstractEstimator,
    "solvers": AbstractSolver,
    "targets": AbstractTarget,
}
# Parts whose battery cannot be that of test_batteries.py, because they run on targets of one kind
# or have an optimum of their own; each has known truth in the file named here.
ELSEWHERE = {
    "Subsampled": "solvers/test_subsampled.py",
    "Pathfinder": "solvers/test_pathfinder.py",
    "Gibbs": "search/test_conjugate_form.py",
    "FoundModel": "search/test_conjugate_form.py",
    "Transported": "solvers/test_coordinate_ascent.py",
    "NormalSample": "solvers/test_coordinate_ascent.py",
    "LinearRegressionARD": "solvers/test_coordinate_ascent.py",
    "LatentDirichletAllocation": "solvers/test_coordinate_ascent.py",
    "HierarchicalNormal": "solvers/test_coordinate_ascent.py",
    "HiddenMarkovModel": "solvers/test_coordinate_ascent.py",
    "GaussianMixture": "solvers/test_coordinate_ascent.py",
    "FactorAnalysis": "solvers/test_coordinate_ascent.py",
    "ConjugateModel": "solvers/test_coordinate_ascent.py",
    "CollapsedModel": "solvers/test_coordinate_ascent.py",
    "SVI": "solvers/test_coordinate_ascent.py",
    "CoordinateAscent": "solvers/test_coordinate_ascent.py",
    "Gamma": "families/test_exponential.py",
    "InverseGamma": "families/test_exponential.py",
    "Exponential": "families/test_exponential.py",
    "Beta": "families/test_exponential.py",
    "Dirichlet": "families/test_exponential.py",
    "Bernoulli": "families/test_exponential.py",
    "Categorical": "families/test_exponential.py",
    "Poisson": "families/test_exponential.py",
    "Normal": "families/test_exponential.py",
    "MultivariateNormal": "families/test_exponential.py",
    "Wishart": "families/test_exponential.py",
    "NormalWishart": "families/test_exponential.py",
    "VonMises": "families/test_exponential.py",
    "DiscreteMarkovChain": "families/test_exponential.py",
    "Product": "families/test_exponential.py",
    "Flow": "families/test_flow.py",  # the battery would compile its splines a dozen times
    "FixedNoise": "families/test_warped.py",
    "Nested": "solvers/test_nested.py",
    "NestedPair": "solvers/test_nested_pair.py",
    "EP": "solvers/test_ep.py",
    "Annealed": "targets/test_clutter.py",
    "Enumerate": "estimators/test_discrete.py",
    "Relaxed": "estimators/test_discrete.py",
    "Minibatch": "estimators/test_minibatch.py",
    "GaussHermite": "estimators/test_gauss_hermite.py",
    "LocalQuadratic": "estimators/clutter/test_local_quadratic.py",
    "Empirical": "solvers/test_samplers.py",
    "HMC": "solvers/test_samplers.py",
    "Metropolis": "solvers/test_samplers.py",
    "NUTS": "solvers/test_samplers.py",
    "ProjectedLogit": "estimators/clutter/test_projected_logit.py",
    "SumOfExponentials": "estimators/clutter/test_sum_of_exponentials.py",
    "IndicatorMeanField": "solvers/test_indicators.py",
    "Clutter": "targets/test_clutter.py",
    "Conditional": "families/test_conditional.py",
    "Conditioned": "families/test_conditional.py",
    "Ensemble": "families/test_conditional.py",
    "ForwardKL": "objectives/test_forward_kl.py",
    "FromModel": "estimators/test_from_model.py",
    "HeldOut": "amortised/test_posterior.py",
    "SimulatedModel": "targets/test_simulator.py",
    "SimulatorPosterior": "targets/test_simulator.py",
    "SoftmaxWeighted": "objectives/test_forward_kl.py",
    "StoredSimulations": "targets/test_simulator.py",
    "LinearSites": "targets/test_sites.py",
    "LinearClutter": "targets/test_linear_clutter.py",
    "UpdatedRows": "test_update.py",
    "LearnClutter": "solvers/test_learn_clutter.py",
    "LogDensity": "targets/test_log_density.py",
    "IndependentRows": "targets/test_rows.py",
    "NumPyroModel": "targets/test_numpyro_model.py",
    "NumPyroRows": "targets/test_numpyro_model.py",
}
MADE_BY = {
    "FoundModel": "as_conjugate",
    "CollapsedModel": "from_expected_log_joint",
    "ConjugateModel": "from_expected_log_joint",
    "Transported": "tb.fit",
    "LogDensity": "from_log_density",
    "IndependentRows": "from_rows",
    "NumPyroModel": "from_numpyro",
    "NumPyroRows": "from_numpyro",
    "SimulatedModel": "from_simulator",
    "SimulatorPosterior": "target.at(",
    "StoredSimulations": "from_simulations",
}


def modules(package):
    """All modules below a package, the package included."""
    path = [str(Path(package.__file__).parent)]
    found = [
        importlib.import_module(info.name)
        for info in pkgutil.walk_packages(path, package.__name__ + ".")
    ]
    return [package, *found]


def concrete(package, base):
    """Public concrete subclasses of `base` that are defined below the package."""
    members = {
        c for module in modules(package) for _, c in inspect.getmembers(module, inspect.isclass)
    }
    return {
        c.__name__: c
        for c in members
        if issubclass(c, base)
        and c.__module__.startswith(package.__name__)
        and not is_abstract(c)
        and c.__name__[0] != "_"
    }


def is_abstract(c):
    """Equinox's abstract classes have abstract methods or abstract attributes.

    Ours are called so as well, abilities are bare.
    """
    attributes = getattr(c, "__abstractvars__", ()) or getattr(c, "__abstractclassvars__", ())
    return bool(inspect.isabstract(c) or attributes or c.__name__.startswith("Abstract"))


def table():
    """Names of the classes of all members of the tables of test_batteries.py."""
    spec = importlib.util.spec_from_file_location("the_batteries", TESTS / "test_batteries.py")
    batteries = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(batteries)
    found = {
        type(member).__name__
        for name in ("FAMILIES", "OBJECTIVES", "TARGETS")
        for member in getattr(batteries, name).values()
    }
    return found | {
        type(row[0]).__name__
        for name in ("ESTIMATORS", "SOLVERS")
        for row in getattr(batteries, name).values()
    }


CLASSES = [
    (kind, name, c)
    for kind, base in KINDS.items()
    for name, c in sorted(concrete(getattr(tb, kind), base).items())
]
every_class = pytest.mark.parametrize(
    ("kind", "name", "part"), CLASSES, ids=[name for _, name, _ in CLASSES]
)


def test_the_walk_finds_what_is_known_to_be_there():
    found = {(kind, name) for kind, name, _ in CLASSES}
    assert found >= {
        ("families", "Gaussian"), ("families", "NestedGaussian"), ("objectives", "IWELBO"), ("estimators", "FixedDesign"),
        ("solvers", "NaturalGradient"), ("solvers", "Laplace"), ("targets", "LogDensity"),
    }  # fmt: skip
    assert not any(name.startswith("Abstract") for _, name in found)


@every_class
def test_it_is_exported_from_its_package(kind, name, part):
    package = getattr(tb, kind)
    assert getattr(package, name, None) is part, (
        f"tb.{kind} does not export {name}: import it in {kind}/__init__.py."
    )


@every_class
def test_it_is_documented(kind, name, part):
    text = part.__dict__.get("__doc__") or ""
    # what dataclasses write where there is none
    generated = text.startswith(f"{name}(") and "\n" not in text
    assert len(text.split()) >= 8, (
        f"{name} has no docstring that says what it is and when not to use it."
    )
    assert not generated, f"{name} has no docstring of its own."
    for field in (
        dataclasses.fields(part) if kind in ("estimators", "solvers", "objectives") else ()
    ):
        own = field.name in part.__dict__.get("__annotations__", {})
        assert not own or f"{field.name}:" in text.replace("`", ""), (
            f"{name}: the docstring leaves out `{field.name}`."
        )


@every_class
def test_it_is_in_a_battery(kind, name, part):
    if name in table():
        return
    assert name in ELSEWHERE, (
        f"{name} is in no table of tests/test_batteries.py: add a member there, or say in ELSEWHERE"
        " of tests/test_complete.py which file compares it with known truth."
    )
    file = TESTS / ELSEWHERE[name]
    assert file.exists(), f"{name}: {file} does not exist."
    maker = MADE_BY.get(name, name)
    assert maker in file.read_text(encoding="utf-8"), f"{maker} does not occur in {file}."


def test_nothing_is_excused_twice():
    stale = set(ELSEWHERE) & table() | set(ELSEWHERE) - {name for _, name, _ in CLASSES}
    assert not stale, f"ELSEWHERE lists what is in a table, or does not exist: {sorted(stale)}"


# -- negative controls
# ------------------------------------------------------------------------------------------------


def test_a_class_that_is_forgotten_is_seen(monkeypatch):
    class Forgotten(tb.solvers.Laplace):
        pass

    Forgotten.__module__ = "tightbound.solvers.laplace"
    monkeypatch.setattr(
        importlib.import_module("tightbound.solvers.laplace"), "Forgotten", Forgotten, raising=False
    )
    assert "Forgotten" in concrete(tb.solvers, AbstractSolver)
    assert not hasattr(tb.solvers, "Forgotten")
    assert "Forgotten" not in table() | set(ELSEWHERE)
    with pytest.raises(AssertionError, match="does not export Forgotten"):
        test_it_is_exported_from_its_package("solvers", "Forgotten", Forgotten)
    with pytest.raises(AssertionError, match="no docstring"):
        test_it_is_documented("solvers", "Forgotten", Forgotten)
    with pytest.raises(AssertionError, match="Forgotten is in no table"):
        test_it_is_in_a_battery("solvers", "Forgotten", Forgotten)


# -- public names (DESIGN.md section 3, as far as they exist by now)
# --------------------------------------------------

NAMES = [
    "from_expected_log_joint",
    "from_log_density",
    "from_rows",
    "from_numpyro",
    "from_simulator",
    "from_simulations",
    "fit",
    "check",
    "compare_estimators",
    "load",
    "update",
    "targets.Clutter",
    "targets.LinearClutter",
    "estimators.GaussHermite",
    "estimators.LocalQuadratic",
    "solvers.EP",
    "solvers.annealed_start",
    "fit_batch",
    "linear_response",
    "Fit.expect",
    "BatchFit",
    "BatchFit.attention",
    "BatchFit.sample",
    "BatchFit.summary",
    "Budget",
    "Estimate",
    "Fit",
    "Certificate",
    "Finding",
    "Verdict",
    "Result",
    "FitError",
    "TargetError",
    "PairingError",
    "families.Gaussian",
    "families.Gaussian.diagonal",
    "families.Gaussian.full",
    "families.Gaussian.low_rank",
    "families.Gaussian.mean",
    "families.Gaussian.cov",
    "families.Gaussian.sd",
    "families.Gaussian.sample",
    "families.Gaussian.log_prob",
    "families.Mixture",
    "families.Product",
    "solvers.CoordinateAscent",
    "solvers.SVI",
    "solvers.Gibbs",
    "objectives.ELBO",
    "objectives.IWELBO",
    "objectives.Renyi",
    "objectives.ChiUpper",
    "estimators.Pathwise",
    "estimators.StickTheLanding",
    "estimators.FixedDesign",
    "estimators.DoublyReparam",
    "estimators.Score",
    "estimators.MeasureValued",
    "estimators.Enumerate",
    "estimators.Quadrature",
    "solvers.StochasticGradient",
    "solvers.NaturalGradient",
    "solvers.Laplace",
    "objectives.ForwardKL",
    "objectives.SoftmaxWeighted",
    "estimators.FromModel",
    "solvers.HeldOut",
    "families.Conditional",
    "amortised.amortised",
    "Fit.at",
    "refine",
    "Fit.certificate",
    "Fit.elbo",
    "Fit.sample",
    "Fit.summary",
    "Fit.to_datatree",
    "Fit.report",
    "Fit.save",
    "Certificate.verdict",
    "Certificate.khat",
    "Certificate.explain",
    "targets.zoo",
    "targets.zoo.eight_schools",
]


@pytest.mark.parametrize("name", NAMES)
def test_a_public_name_exists_and_is_documented(name):
    thing = tb
    for i, part in enumerate(name.split(".")):
        fields = (
            {f.name for f in dataclasses.fields(thing)}
            if i and dataclasses.is_dataclass(thing)
            else set()
        )
        if part in fields:
            return
        thing = getattr(thing, part)
    assert (inspect.getdoc(thing) or "").strip(), f"tb.{name} has no docstring."


def test_fit_has_the_promised_fields_and_arguments():
    fields = {field.name for field in dataclasses.fields(tb.Fit)}
    assert fields >= {"q", "target", "result", "steps", "trace", "spent"}
    assert isinstance(tb.Fit.evaluations, property)
    assert {field.name for field in dataclasses.fields(tb.Certificate)} >= {"log_evidence"}
    signature = inspect.signature(tb.fit)
    expected = [
        "target",
        "q",
        "objective",
        "solver",
        "key",
        "tol",
        "budget",
        "max_steps",
        "starts",
        "dtype",
        "progress",
        "throw",
    ]
    assert list(signature.parameters) == expected
    defaults = {
        n: p.default
        for n, p in signature.parameters.items()
        if p.default is not inspect.Parameter.empty
    }
    assert defaults["key"] == 0
    assert defaults["tol"] == 0.02
    assert defaults["throw"] is True
    assert all(signature.parameters[n].kind is inspect.Parameter.KEYWORD_ONLY for n in expected[4:])
    assert {str(verdict) for verdict in tb.Verdict} == {"pass", "caution", "fail"}
    assert {f.name for f in dataclasses.fields(tb.Budget)} == {"seconds", "evaluations"}


def test_everything_in_all_exists():
    for package in (tb, tb.targets, tb.solvers, tb.certify):
        assert all(hasattr(package, name) for name in package.__all__)


def test_parts_are_equinox_modules_and_results_are_sentences():
    assert all(issubclass(part, eqx.Module) for _, _, part in CLASSES)
    for result in tb.Result:
        assert str(result).endswith((".", "?"))
        assert len(str(result).split()) >= 3
