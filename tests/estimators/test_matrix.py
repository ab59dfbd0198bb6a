"""The table of docs/estimators.md, "What is supported", is what the code does."""

from pathlib import Path

import numpy as np
import pytest

from tightbound.compare_estimators import refusal
from tightbound.estimators import (
    DoublyReparam,
    Enumerate,
    FixedDesign,
    MeasureValued,
    Pathwise,
    Quadrature,
    Relaxed,
    Score,
    StickTheLanding,
)
from tightbound.families import Bernoulli, Gaussian, Product
from tightbound.objectives import ELBO, IWELBO, VRIWAE, ChiUpper, Fisher, Renyi, WakePhase
from tightbound.targets import from_log_density

OBJECTIVES = (ELBO(), IWELBO(2), VRIWAE(0.5, 2), Renyi(0.5), ChiUpper(), WakePhase(), Fisher())
ESTIMATORS = (
    Pathwise(8),
    StickTheLanding(8),
    DoublyReparam(8),
    Score(8),
    MeasureValued(8),
    Enumerate(),
    Quadrature(20),
    FixedDesign(),
    Relaxed(8),
)
LINE = from_log_density(lambda v: -(v["x"] ** 2), {"x": 0.0})
COIN = from_log_density(lambda v: v["x"], {"x": 0.0})


def entry(estimator, objective):
    discrete = isinstance(estimator, Enumerate | Relaxed)
    target, q = (COIN, Product(x=Bernoulli(0.3))) if discrete else (LINE, Gaussian.diagonal(1))
    if refusal(estimator, target, q, objective):
        return "no"
    return "exact" if estimator.exact else "yes" if objective.averages else "1/n"


def documented():
    text = (Path(__file__).parents[2] / "docs" / "estimators.md").read_text(encoding="utf-8")
    section = text.split("## What is supported")[1].split("\n## ")[0]
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in section.splitlines()
        if line.startswith("|")
    ]
    return rows[0][1:], {row[0]: row[1:] for row in rows[2:]}


def test_the_table_lists_everything():
    columns, rows = documented()
    assert columns == [type(o).__name__ for o in OBJECTIVES]
    assert list(rows) == [type(e).__name__ for e in ESTIMATORS]


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=lambda e: type(e).__name__)
def test_a_row_is_what_the_code_does(estimator, as_a_user):
    _, rows = documented()
    assert rows[type(estimator).__name__] == [
        entry(estimator, objective) for objective in OBJECTIVES
    ]


def test_what_is_unbiased_is_declared():
    for estimator in ESTIMATORS:
        yes = [
            type(o)
            for o in OBJECTIVES
            if documented()[1][type(estimator).__name__][OBJECTIVES.index(o)] == "yes"
        ]
        assert set(yes) == set(estimator.unbiased_for) or estimator.exact
    assert np.all([type(o) in Enumerate.unbiased_for for o in OBJECTIVES[:-1]])
