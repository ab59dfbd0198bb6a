"""The registry: what a certificate runs, in which order, and that a new finding is one new file."""

import ast
import dataclasses
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

import tightbound as tb
from tightbound.certify import certificate as certificate_module
from tightbound.certify import finding as finding_module
from tightbound.certify import findings
from tightbound.certify.certificate import judge
from tightbound.certify.draws import fresh_sample
from tightbound.certify.finding import (
    REGISTRY,
    About,
    Finding,
    FindingDetail,
    Stage,
    Verdict,
    register,
)
from tightbound.certify.fitted import Pair
from tightbound.families import Gaussian
from tightbound.targets import Clutter, zoo

pytestmark = pytest.mark.usefixtures("as_a_user")

STANDARD = tb.from_log_density(lambda p: -0.5 * jnp.sum(p["z"] ** 2), {"z": np.zeros(3)})
EXACT = Pair(Gaussian.full(3), STANDARD)
NEW = '''
"""A finding for the test: how many draws there are."""

from tightbound.certify.finding import Case, Finding, FindingDetail, Verdict, register


@register("number", place=35)
def number(case: Case) -> Finding:
    count = float(len(case.sample.z))
    return Finding("number", count, 0.0, None, Verdict.CAUTION, "There are draws.", "a test")
'''


@pytest.fixture
def registry():
    """The registry as it was, whatever a test enters."""
    before = list(REGISTRY)
    yield REGISTRY
    REGISTRY[:] = before


def names(*, of, stage=None):
    return [e.name for e in REGISTRY if e.of == of and stage in (None, e.stage)]


def test_the_order_is_declared():
    places = [entry.place for entry in REGISTRY]
    assert places == sorted(places)
    before = ["finite", "converged", "khat", "evidence", "moments", "noise", "khat per parameter"]
    weights = [*before, "tails", "coverage", "stein", "precision", "width", "modes", "optima"]
    assert names(of="weights") == ["proper", *weights]
    assert names(of="chains") == ["rhat", "ess", "divergences", "optima", "precision"]


def test_a_certificate_holds_what_is_registered_for_its_case_in_that_order():
    plain = ["width", "modes", "proper"]  # of contaminated data, and of a posterior that is none
    assert list(tb.check(EXACT, key=0)) == [n for n in names(of="weights") if n not in plain]
    contaminated = tb.check(Pair(Gaussian.full(1), Clutter([1.0, 1.2, 1.1])), key=0)
    assert [n for n in contaminated if n != "proper"] == [
        n for n in names(of="weights") if n != "proper"
    ]


def test_judging_takes_no_search():
    sample = fresh_sample(EXACT, 0)
    found = [finding.name for finding in judge(EXACT.q, sample, 0)]
    cheap = names(of="weights", stage=Stage.JUDGE)
    assert found == [name for name in cheap if name not in ("width", "modes")]
    assert "optima" not in found


def test_a_new_finding_is_one_new_file(registry, tmp_path, monkeypatch):
    """The folder gets a file, and every certificate the finding, in its place."""
    assert "number" not in tb.check(EXACT, key=0)
    (tmp_path / "number.py").write_text(NEW)
    monkeypatch.setattr(findings, "__path__", [*findings.__path__, str(tmp_path)])
    findings.load()
    try:
        certificate = tb.check(EXACT, key=0)
        assert certificate["number"].value == 4000
        assert certificate.verdict == "caution"
        order = list(certificate)
        assert order[order.index("number") - 1] == "khat"
        assert order[order.index("number") + 1] == "evidence"
    finally:
        del sys.modules["tightbound.certify.findings.number"]


def test_the_certificate_names_no_finding():
    """certificate.py imports the folder of findings, and nothing from its files."""
    tree = ast.parse(Path(certificate_module.__file__).read_text())
    imported = {
        node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level
    }
    files = {path.stem for path in Path(findings.__file__).parent.glob("*.py")} - {"__init__"}
    assert len(files) >= 7
    assert not {
        module for module in imported if (module or "").rpartition(".")[2] in files - {"chains"}
    }


def test_a_name_and_a_place_are_taken_once(registry):
    with pytest.raises(ValueError, match="the name 'khat' or the place 1 is taken"):
        register("khat", place=1)(lambda case: None)
    with pytest.raises(ValueError, match="the place 30 is taken by 'khat'"):
        register("another", place=30)(lambda case: None)


def test_a_finding_that_has_nothing_to_report_is_not_in_the_certificate(registry):
    register("silent", place=1)(lambda case: None)
    assert "silent" not in tb.check(EXACT, key=0)


def test_a_finding_is_for_targets_with_its_ability(registry):
    def said(case):
        return Finding("of clutter", 0.0, 0.0, None, Verdict.PASS, "Clutter.", "a test")

    register("of clutter", place=1, ability=tb.targets.sites.Contaminated)(said)
    assert "of clutter" not in tb.check(EXACT, key=0)
    assert "of clutter" in tb.check(Pair(Gaussian.full(1), Clutter([1.0, 1.2])), key=0)


def test_details_are_told_apart_by_their_names():
    assert FindingDetail.kinds["OptimaDetail"].__module__.endswith("findings.optima")
    with pytest.raises(TypeError, match="Two details of findings are called OptimaDetail"):
        type("OptimaDetail", (FindingDetail,), {"__module__": "elsewhere"})
    assert FindingDetail.kinds["OptimaDetail"].__module__.endswith("findings.optima")


def test_details_are_records_that_a_saved_fit_can_hold():
    assert all(dataclasses.is_dataclass(kind) for kind in FindingDetail.kinds.values())
    own = [kind for kind in FindingDetail.kinds.values() if "tightbound" in kind.__module__]
    assert len(own) > 10
    assert all(kind.__doc__ for kind in own)


def test_doubts_say_what_they_are_about():
    """What the climb asks: tails and searches are no matter of the family."""
    found = tb.check(Pair(Gaussian.full(3), STANDARD), key=0)
    assert found["tails"].about is About.TAILS
    assert found["converged"].about is About.SEARCH
    assert {f.name for f in found.values() if f.about is About.ELSEWHERE} == {"coverage", "optima"}
    assert {f.name for f in found.values() if f.about is About.DENSITY} == {"finite", "precision"}


def test_the_rivals_of_a_certificate_are_typed():
    known = zoo.two_modes(2, separation=10.0)
    one = Gaussian.from_root(np.array([-5.0, 0.0]), np.eye(2))
    certificate = tb.check(Pair(one, known.target), key=0)
    (rival,) = certificate.rivals
    assert isinstance(rival, finding_module.Rival)
    np.testing.assert_allclose(rival.mean, [5.0, 0.0], atol=0.05)
    assert certificate.detail(finding_module.EvidenceDetail).elbo == certificate.elbo
    assert certificate.detail(finding_module.NotExamined) is None
    assert tb.check(EXACT, key=0).rivals == ()
