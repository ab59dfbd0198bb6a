"""Findings of contaminated data.

v / vg, the cap of the annealed loop, and the modes of the posterior.
"""

import dataclasses
from typing import Any

import numpy as np
import pytest

import tightbound as tb
from tightbound.certify.draws import unweighed_draws
from tightbound.certify.finding import Case
from tightbound.certify.findings.contaminated import multimodality
from tightbound.families import Gaussian
from tightbound.solvers import Annealed
from tightbound.targets import Clutter
from tightbound.testing import GaussianTarget


@dataclasses.dataclass(frozen=True)
class Fitted:
    q: Any
    target: Any


def test_the_cap_of_the_annealed_loop_is_a_caution():
    """Spec, section 2.2: v <= vg always; the exact posterior here has ten times that."""
    target = Clutter([-4.0, 5.0], w=0.9)
    fit = tb.fit(target, Gaussian.full(1), solver=Annealed())
    found = fit.certificate["width"]
    assert found.verdict == "caution"
    assert found.detail.capped
    assert found.value == pytest.approx(1.0, abs=1e-9)
    assert "exactly the noise variance" in found.why
    assert fit.certificate.verdict != "pass"


def test_width_is_in_units_of_the_noise():
    rng = np.random.default_rng(0)
    vg = np.array([[4.0, 1.0], [1.0, 2.0]])
    target = Clutter(rng.multivariate_normal([1.0, 0.0], vg, 30), w=0.1, vg=vg, vc=400.0)
    q = Gaussian.from_root(np.array([1.0, 0.0]), np.sqrt(0.05) * np.linalg.cholesky(vg))
    found = tb.check(Fitted(q, target))["width"]
    assert found.value == pytest.approx(0.05, rel=1e-9)
    assert found.verdict == "pass"
    assert not found.detail.capped


def test_modes_are_those_of_the_exact_grid():
    for x in ([-8.0, -8.0, 8.0, 8.1], [-8.0, -7.9, 0.3, 0.5, 8.0, 8.1], [1.0, 1.2, 1.1]):
        target = Clutter(x)
        q = Gaussian.full(1)
        sample = unweighed_draws(Fitted(q, target), 0, 10)
        exact, found = target.exact(), multimodality(Case(q, sample, 0))
        close = [
            m
            for m in exact.modes[:, 0]
            if target.log_density_on_host(np.array([[m]]))[0]
            > np.max(exact.log_p) + exact.log_evidence - 3.0
        ]
        places = sorted(float(place[0]) for place in found.detail.modes)
        np.testing.assert_allclose(
            [min(places, key=lambda p: abs(p - m)) for m in close], close, atol=0.1
        )  # the step of the grid
        assert found.value == len(places)


def test_other_targets_have_neither():
    q = Gaussian.full(2)
    found = tb.check(Fitted(q, GaussianTarget(q)))
    assert "width" not in found
    assert "modes" not in found
