"""Every threshold is said once, is read, and decides."""

import ast
import dataclasses
import inspect
import re
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tightbound as tb
from tightbound.certify.fitted import Pair
from tightbound.certify.standards import EFFORT, STANDARDS, Effort, Standards
from tightbound.families import Gaussian

pytestmark = pytest.mark.usefixtures("as_a_user")

SOURCE = Path(tb.__file__).parent
STANDARD = tb.from_log_density(lambda p: -0.5 * jnp.sum(p["z"] ** 2), {"z": np.zeros(3)})


def gaussian(mean=0.0, sd=1.0):
    return Gaussian.from_root(np.full(3, float(mean)), sd * np.eye(3))


def read_somewhere(record, name):
    text = "\n".join(
        path.read_text() for path in SOURCE.rglob("*.py") if path.name != "standards.py"
    )
    return re.search(rf"\b(?:{record})\.{name}\b", text) is not None


# Read from the module's standards alone, for who reads it is given none.
FROM_THE_MODULE = {"correctable": "a summary is asked for without standards"}


@pytest.mark.parametrize("field", [f.name for f in dataclasses.fields(Standards)])
def test_every_threshold_is_read_from_the_standards_that_are_given(field):
    assert read_somewhere("standards", field) != (field in FROM_THE_MODULE), "nothing is held to it"
    assert read_somewhere("standards|STANDARDS", field)


@pytest.mark.parametrize("field", [f.name for f in dataclasses.fields(Effort)])
def test_every_number_of_effort_is_read(field):
    assert read_somewhere("effort|EFFORT", field)


def test_a_threshold_that_does_not_exist_is_not_read():
    assert not read_somewhere("standards", "imagined")
    assert not read_somewhere("standards", "correctable"), "STANDARDS.correctable is another"


def renamed(text):
    """Assignments of the module's standards to a name that looks like an argument's."""
    return [
        ast.unparse(node)
        for node in ast.walk(ast.parse(text))
        if isinstance(node, (ast.Assign, ast.AnnAssign, ast.NamedExpr))
        and node.value is not None
        and ast.unparse(node.value) == "STANDARDS"
    ]


def test_no_local_name_passes_for_the_standards_that_were_given():
    found = {path.name: renamed(path.read_text("utf-8")) for path in SOURCE.rglob("*.py")}
    # the field of a case, for one that is made without standards
    assert {file: what for file, what in found.items() if what} == {
        "finding.py": ["standards: Standards = STANDARDS"]
    }
    assert renamed("def f():\n    standards = STANDARDS") == ["standards = STANDARDS"]
    assert not renamed("def f(standards=STANDARDS):\n    standards = given")


def without_reason(text):
    """Fields that no comment speaks of.

    It stands above the field, or above those before it: then a word of the field's name, or its
    plural, is in the comment or in the name of one of these.
    """
    bare, above, spoken_of = [], [], ""
    for line in text.splitlines():
        field = re.match(r"    (\w+): (?:int|float) = ", line)
        if line.startswith("    # "):
            spoken_of = line if above else spoken_of + line
            above = []
        elif field:
            name = field[1]
            known = set(re.findall(r"[a-z]+", " ".join([spoken_of, *above]).lower()))
            words = {word + end for word in name.split("_") for end in ("", "s")}
            if not spoken_of or (above and not known & words):
                bare.append(name)
            above.append(name.replace("_", " "))
        else:
            above, spoken_of = [], ""
    return bare


def test_every_number_has_its_reason_beside_it():
    assert without_reason((SOURCE / "certify" / "standards.py").read_text("utf-8")) == []


def test_a_number_without_a_reason_is_seen():
    for text, found in (
        ("    # Nats.\n    gap: float = 0.1\n    gap_fail: float = 0.2", []),
        ("    # Nats.\n    gap: float = 0.1\n    far: float = 0.2", ["far"]),
        ("    # Nats, and the share that is far.\n    gap: float = 0.1\n    far: float = 0.2", []),
        ("    # Nats.\n    gap: float = 0.1\n\n    gap_fail: float = 0.2", ["gap_fail"]),
        ("class A:\n    gap: float = 0.1", ["gap"]),
    ):
        assert without_reason(text) == found, text


def test_they_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        STANDARDS.mean = 0.5
    with pytest.raises(dataclasses.FrozenInstanceError):
        EFFORT.draws = 10


@pytest.mark.parametrize(
    ("q", "finding", "stricter"),
    [
        (gaussian(mean=0.04), "moments", Standards(mean=0.01)),
        (gaussian(sd=0.97), "moments", Standards(sd=0.01)),
        (gaussian(sd=0.93), "stretch", Standards(stretch=0.01)),
        (gaussian(mean=0.04), "shift", Standards(shift=0.01)),
        (gaussian(sd=0.97), "khat", Standards(effective=3999.0, nearly_equal=1.0)),
        (gaussian(sd=0.97), "evidence", Standards(width=1e-4)),
        (gaussian(mean=0.2), "stein", Standards(stein=0.1)),
    ],
)
def test_a_stricter_standard_makes_a_pass_a_doubt(q, finding, stricter):
    name = "converged" if finding in ("stretch", "shift") else finding
    assert tb.check(Pair(q, STANDARD), key=3)[name].verdict == "pass"
    found = tb.check(Pair(q, STANDARD), key=3, standards=stricter)
    assert found[name].verdict == "caution"
    assert found.verdict != "pass"


def test_sentences_are_formatted_from_them():
    stricter = Standards(mean=0.03, sd=0.05, noise=0.02, shift=0.02)
    found = tb.check(Pair(gaussian(), STANDARD), key=0, standards=stricter)
    assert "all means within 0.03 sd and all sds within 5 %" in found["moments"].why
    assert "less than 0.02 sd" in found["noise"].why
    assert "by more than 0.02 sd" in found["converged"].why
    assert found["moments"].threshold == 0.03
    usual = tb.check(Pair(gaussian(), STANDARD), key=0)
    assert "all means within 0.1 sd and all sds within 10 %" in usual["moments"].why


def test_an_sd_is_held_to_its_own_limit():
    """q three per cent too narrow: within the limit of sds, or of means, whichever is asked."""
    narrow = Pair(gaussian(sd=0.97), STANDARD)
    lenient, strict = Standards(mean=0.01, sd=0.2), Standards(mean=0.2, sd=0.01)
    assert tb.check(narrow, key=3, standards=lenient)["moments"].verdict == "pass"
    assert tb.check(narrow, key=3, standards=strict)["moments"].verdict == "caution"


class Poisoned:
    """In the place of the module's standards: whoever reads it has not asked the caller's."""

    def __getattr__(self, name):
        raise AssertionError(f"`{name}` was read from the module, not from the standards given")


def functions_of(module):
    """Functions and methods of a module, and what their decorators wrap."""
    held = list(vars(module).values())
    held += [v for c in held if inspect.isclass(c) for v in vars(c).values()]
    for function in held:
        while inspect.isfunction(function):
            yield function
            function = getattr(function, "__wrapped__", None)


@pytest.fixture
def poisoned(monkeypatch):
    """The module's standards replaced wherever a module or a default of a function holds them."""
    poison = Poisoned()
    for name, module in list(sys.modules.items()):
        if not name.startswith(("tightbound.certify.", "tightbound.amortised.")):
            continue
        for function in functions_of(module):
            named = {
                k: poison if v is STANDARDS else v
                for k, v in (function.__kwdefaults__ or {}).items()
            }
            placed = tuple(poison if v is STANDARDS else v for v in function.__defaults__ or ())
            monkeypatch.setattr(function, "__kwdefaults__", named or None)
            monkeypatch.setattr(function, "__defaults__", placed or None)
        if hasattr(module, "STANDARDS"):
            monkeypatch.setattr(module, "STANDARDS", poison)


def gaussian_simulator():
    return tb.from_simulator(
        lambda key: {"mu": jax.random.normal(key)},
        lambda key, p: p["mu"] + jax.random.normal(key, (4,)),
    )


@pytest.mark.parametrize("kind", ["density", "few effective", "rivals", "factors", "amortised"])
def test_a_check_reads_the_standards_it_was_given_and_no_others(kind, poisoned):
    if kind == "factors":
        target = tb.targets.NormalSample(np.array([1.0, 2.0, 4.0]))
        fitted = Pair(target.start(0), target)
    elif kind == "amortised":
        target = gaussian_simulator()
        fitted = Pair(tb.amortised.amortised(target), target)
    elif kind == "rivals":
        pair = tb.from_log_density(
            lambda p: jnp.sum(jnp.logaddexp(-0.5 * (p["z"] - 4) ** 2, -0.5 * (p["z"] + 4) ** 2)),
            {"z": np.zeros(1)},
        )
        fitted = Pair(Gaussian.from_root(np.array([4.0]), np.eye(1)), pair)
    else:
        # Some 600 of 4,000 draws are effective at .8 sds: whether more would help is asked too.
        fitted = Pair(gaussian(mean=0.8 if kind == "few effective" else 0.3), STANDARD)
    assert tb.check(fitted, standards=Standards(mean=0.03)).findings


def test_a_standard_that_is_not_asked_is_seen(poisoned):
    with pytest.raises(AssertionError, match="`mean` was read from the module"):
        _ = tb.certify.standards.STANDARDS.mean
