"""The clutter reproductions meet their claims, and say so as the command line prints them."""

import importlib

import numpy as np
import pytest

import tightbound as tb
from tightbound.experiments import REGISTRY, run
from tightbound.experiments.clutter import PUBLISHED
from tightbound.experiments.clutter import run as run_clutter
from tightbound.experiments.clutter_methods import best_gaussian
from tightbound.experiments.result import Result, agrees, below
from tightbound.targets import Clutter

KEYS = {"claim", "source", "published", "measured", "tolerance", "ok"}


@pytest.fixture(scope="module")
def result():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tightbound.experiments.clutter.EVIDENCE_SETS", 40)
        yield run("clutter", fast=True)


@pytest.mark.slow
def test_every_claim_is_met(result):
    assert [claim["claim"] for claim in result.claims if not claim["ok"]] == []
    assert all(set(claim) == KEYS for claim in result.claims)
    assert result.ok


@pytest.mark.slow
def test_the_whole_table_is_there_where_the_data_are(result):
    if result.note:
        pytest.skip(result.note)  # which says where the paper's data are looked for
    assert len([c for c in result.claims if c["claim"].startswith("KL(q || p) of")]) == 20
    assert [row["n"] for row in result.tables["kl"]] == list(PUBLISHED)


TINY = {
    "clutter-stress": (
        "clutter_stress",
        {"SIZES": (1, 12, 100), "SHARES": (0.5,), "PLACES": (2.0, 5.0)},
    ),
    "clutter-scaling": (
        "clutter_scaling",
        {"SIZES": (20, 10_000, 30_000), "LINEAR_FROM": 10_000, "SETS": {100: (4, 4)}},
    ),
    "clutter-2d": ("clutter_2d", {"SETS": {100: (2, 2)}, "HIGHER": {5: 40}, "HIGHER_SETS": (2, 2)}),
}
TIMED = "exponent of n"  # a busy machine bends it


@pytest.mark.slow
@pytest.mark.parametrize("name", TINY)
def test_tiny_forms_meet_their_claims_and_draw(name, monkeypatch):
    """A few data sets of each reproduction; `tightbound reproduce` runs the published sizes."""
    file, sizes = TINY[name]
    module = importlib.import_module(f"tightbound.experiments.{file}")
    for constant, value in sizes.items():
        monkeypatch.setattr(module, constant, value)
    found = run(name, fast=True)
    assert len(found.claims) >= 5
    assert [c["claim"] for c in found.claims if not c["ok"] and TIMED not in c["claim"]] == []
    assert all(set(claim) == KEYS for claim in found.claims)
    drawn = module.figures(found)
    assert all(figure.get_axes() for figure in drawn.values())


def test_the_best_gaussian_is_that_of_another_search():
    """Mean and variance on the paper's n = 5 points, as a separate implementation found them."""
    best = best_gaussian(Clutter([-3.6048, 1.1717, 2.9157, 0.3442, 2.2250]))
    assert best.mean[0] == pytest.approx(1.7609, abs=5e-5)
    assert best.cov[0, 0] == pytest.approx(0.8276, abs=5e-5)


def test_claims():
    assert agrees("a", "b", 2.0, 2.009, 5e-3)["ok"]
    assert not agrees("a", "b", 2.0, 2.011, 5e-3)["ok"]
    assert not agrees("a", "b", 2.0, np.nan, 5e-3)["ok"]
    assert below("a", "b", 1.0, 0.5)["ok"]
    assert not below("a", "b", 1.0, 1.0)["ok"]
    assert not Result("x", []).ok


def test_unknown_names_and_folders_are_sentences(tmp_path):
    with pytest.raises(ValueError, match="there are .*clutter"):
        run("cluter")
    with pytest.raises(ValueError, match=r"no paper_n20\.csv"):
        run_clutter(data=tmp_path)
    with pytest.raises(
        ValueError, match=r"clutter takes no option `seed`; besides `fast` it takes data\."
    ):
        run("clutter", seed=1)


def test_registry_is_lazy_and_reachable():
    assert tb.experiments.REGISTRY is REGISTRY
    assert all(len(line) < 130 for line in REGISTRY.values())
