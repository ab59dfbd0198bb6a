"""The clutter reproduction meets its claims, and says so in the form that the command line prints."""

import numpy as np
import pytest

import tightbound as tb
from tightbound.experiments import REGISTRY, run
from tightbound.experiments.clutter import PUBLISHED
from tightbound.experiments.clutter import run as run_clutter
from tightbound.experiments.result import Result, agrees, below

KEYS = {"claim", "source", "published", "measured", "tolerance", "ok"}


@pytest.fixture(scope="module")
def result():
    return run("clutter", fast=True)


@pytest.mark.slow
def test_every_claim_is_met(result):
    assert [claim["claim"] for claim in result.claims if not claim["ok"]] == []
    assert all(set(claim) == KEYS for claim in result.claims)
    assert result.ok


@pytest.mark.slow
def test_the_whole_table_is_there_where_the_data_are(result):
    if result.note:
        pytest.skip(result.note)
    assert len([c for c in result.claims if c["claim"].startswith("KL(q || p) of")]) == 20
    assert [row["n"] for row in result.tables["kl"]] == list(PUBLISHED)


def test_claims():
    assert agrees("a", "b", 2.0, 2.009, 5e-3)["ok"]
    assert not agrees("a", "b", 2.0, 2.011, 5e-3)["ok"]
    assert not agrees("a", "b", 2.0, np.nan, 5e-3)["ok"]
    assert below("a", "b", 1.0, 0.5)["ok"]
    assert not below("a", "b", 1.0, 1.0)["ok"]
    assert not Result("x", []).ok


def test_unknown_names_and_folders_are_sentences(tmp_path):
    with pytest.raises(ValueError, match="there are clutter"):
        run("cluter")
    with pytest.raises(ValueError, match=r"no paper_n20\.csv"):
        run_clutter(data=tmp_path)
    with pytest.raises(ValueError, match=r"clutter takes no option `seed`; besides `fast` it takes data\."):
        run("clutter", seed=1)


def test_registry_is_lazy_and_reachable():
    assert tb.experiments.REGISTRY is REGISTRY
    assert all(len(line) < 130 for line in REGISTRY.values())
