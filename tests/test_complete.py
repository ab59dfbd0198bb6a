"""Every concrete class is exported, documented and in a battery; the promised names exist."""

import dataclasses
import functools
import importlib
import importlib.util
import inspect
import pkgutil
from pathlib import Path

import equinox as eqx
import jax
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
# The tables of each kind, by the file of tests/batteries that holds them: name -> a function that
# makes a member and what its battery needs.
TABLES = {
    "families": ("FAMILIES",),
    "objectives": ("OBJECTIVES",),
    "estimators": ("ESTIMATORS", "MOMENTS"),
    "solvers": ("SOLVERS",),
    "targets": ("TARGETS", "SIMULATORS"),
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


@functools.cache
def members(kind):
    """Everything in the tables of a kind: name -> member."""
    path = TESTS / "batteries" / f"test_{kind}.py"
    spec = importlib.util.spec_from_file_location(f"battery_of_{kind}", path)
    battery = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(battery)
    # as the batteries themselves make them: targets run the user's code
    with (
        jax.enable_x64(True),
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
    ):
        return {
            f"{table}: {name}": make()[0]
            for table in TABLES[kind]
            for name, make in getattr(battery, table).items()
        }


def in_batteries(kind):
    """The classes of all members of a kind's tables."""
    return {type(member) for member in members(kind).values()}


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
        ("families", "Gaussian"),
        ("families", "NestedGaussian"),
        ("objectives", "IWELBO"),
        ("estimators", "FixedDesign"),
        ("solvers", "NaturalGradient"),
        ("solvers", "Laplace"),
        ("targets", "LogDensity"),
    }
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
    assert part in in_batteries(kind), (
        f"{name} is in no table of tests/batteries/test_{kind}.py: add a line that makes one, and"
        " with it what is known of it."
    )


@pytest.mark.parametrize("kind", KINDS)
def test_a_table_holds_parts_of_its_kind(kind):
    strangers = [n for n, member in members(kind).items() if not isinstance(member, KINDS[kind])]
    assert not strangers, f"tests/batteries/test_{kind}.py: no {kind}: {strangers}"


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
    assert Forgotten not in in_batteries("solvers")
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
