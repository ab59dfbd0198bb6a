"""The bar on real posteriors with reference draws.

Right where it says "pass", and "pass" often enough.
"""

import sys
from pathlib import Path

import numpy as np
import pytest

import tightbound as tb

FOLDER = Path(__file__).parents[2] / "shared" / "data" / "posteriordb"
pytestmark = [
    pytest.mark.usefixtures("as_a_user"),
    pytest.mark.skipif(
        not FOLDER.exists(),
        reason="no ../shared/data/posteriordb: reference draws are not committed",
    ),
]

# A subset that takes seconds; `make bench` runs all nineteen with five seeds.
MUST_PASS = [
    "kidiq-kidscore_interaction",
    "sblrc-blr",
    "nes1976-nes",
    "arK-arK",
    "wells_data-wells_interaction_model",
]
MUST_BE_RIGHT = [
    "eight_schools-eight_schools_centered",
    "seeds_data-seeds_stanified_model",
    "garch-garch11",
]


@pytest.fixture(scope="module")
def models():
    sys.path.insert(0, str(FOLDER))
    try:
        import models as densities
        import numpyro_models

        yield densities.POSTERIORS, numpyro_models.MODELS
    finally:
        sys.path.remove(str(FOLDER))


def python_name(name):
    """`beta[1]` of the reference is `beta[0]` here."""
    base, bracket, index = name.partition("[")
    return f"{base}[{int(index[:-1]) - 1}]" if bracket else base


def fitted(models, name, seed):
    densities, numpyro_models = models
    target = tb.from_numpyro(numpyro_models[name], densities[name].load(str(FOLDER)))
    fit = tb.fit(target, key=seed)
    reference = np.load(FOLDER / name / "reference.npz")
    rows = fit.summary().loc[[python_name(str(n)) for n in reference["names"]]]
    error = np.max(np.abs(rows["mean"] - reference["mean"]) / reference["sd"])
    ratio = rows["sd"] / reference["sd"]
    return fit, error <= 0.1 and ratio.min() >= 0.8 and ratio.max() <= 1.25


@pytest.mark.parametrize("name", MUST_PASS)
def test_regressions_pass_and_are_right(models, name):
    fit, right = fitted(models, name, seed=0)
    assert right
    assert fit.certificate.verdict == "pass", str(fit.certificate)
    assert fit.evaluations <= 10_000


@pytest.mark.parametrize("name", MUST_BE_RIGHT)
@pytest.mark.parametrize("seed", [0, 1])
def test_hierarchical_and_volatility_models_are_right(models, name, seed):
    fit, right = fitted(models, name, seed)
    assert right
    assert fit.certificate.verdict != "fail"
    assert fit.evaluations <= 40_000
