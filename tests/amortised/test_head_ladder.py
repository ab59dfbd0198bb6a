"""The ladder above an amortised Gaussian, on a normal mean whose posterior is known.

Sd 5^(-1/2) for four observations.
"""

import dataclasses

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import tightbound as tb
from tightbound._types import Estimate
from tightbound.account import Account
from tightbound.amortised import head_ladder, heads
from tightbound.amortised.encoders import AbstractEncoder
from tightbound.certify.certificate import Certificate
from tightbound.certify.finding import Finding, Verdict
from tightbound.families import Conditional, Scaling
from tightbound.loop import Run, Trace


class Mean(AbstractEncoder):
    """The exact posterior in the Gaussian head's coordinates, its sd multiplied."""

    width: jax.Array

    def __call__(self, x):
        root = 5**0.5 / self.width
        return jnp.stack([root * jnp.sum(x) / 5, root])


def run_of(target, width, result=tb.Result.held_out):
    q = Conditional(Mean(np.array(width)), heads.Gaussian(1), Scaling.none(np.zeros(4), 1))
    return Run(q, target, result, 3, Trace(np.zeros(3), np.zeros(3), np.zeros(3)), 0.0)


def certificate_of(fitted, *, key):
    """Calibration passes for the right width alone.

    What the real checks say is tested in test_posterior.py.
    """
    right = Verdict.PASS if fitted.q.encoder.width == 1 else Verdict.CAUTION
    says = {"learns": Verdict.PASS, "sbc": right, "expected coverage": right, "tarp": Verdict.PASS}
    found = tuple(
        Finding(name, 0.0, np.nan, 0.0, verdict, "", "") for name, verdict in says.items()
    )
    return Certificate(found, (-np.inf, np.inf), Estimate(np.nan, np.nan), 0, 0.0)


@pytest.fixture(scope="module")
def target():
    return tb.from_simulator(
        lambda key: {"a": jr.normal(key)}, lambda key, p: p["a"] + jr.normal(key, (4,))
    )


@pytest.fixture
def climb(target, monkeypatch):
    monkeypatch.setattr(head_ladder, "check", certificate_of)

    def climb(first, widths, **budget):
        """From the width of the first q up rungs of the given widths.

        The end, and the heads that were trained.
        """
        trained = []
        monkeypatch.setattr(head_ladder, "amortised", lambda target, head, **_: head)

        def run_solver(head, solver, left):
            trained.append(head)
            return run_of(target, widths[len(trained) - 1])

        account = Account(tb.Budget(**budget))
        account._began -= 1.0  # a second ago
        return head_ladder.climb_heads(first, (), run_solver, key=3, account=account), trained

    return climb


def test_a_calibrated_fit_is_left_alone(target, climb):
    end, trained = climb(run_of(target, 1.0), [])
    assert trained == []
    assert end.why == "convex head: calibration asks for no richer one."


def test_a_better_rung_is_kept_and_ends_the_climb(target, climb):
    end, trained = climb(run_of(target, 0.6), [1.0])
    assert trained == ["mixture"]
    assert end.run.q.encoder.width == 1
    assert end.certificate.verdict == "pass"
    assert len(end.trace.loss) == 6


def test_a_rung_that_gains_nothing_is_dropped(target, climb):
    """Twice as wide loses log 2 - 3/8 = 0.32 nats in expectation, half as wide 3/2 - log 2 = 0.81.

    The first is kept.
    """
    end, trained = climb(run_of(target, 2.0), [0.5, 2.0])
    assert trained == ["mixture", "flow"]
    assert end.run.q.encoder.width == 2
    assert end.why == "convex head: no richer head gains on fresh simulations."


def test_a_spent_budget_and_a_short_training_end_the_climb(target, climb):
    end, trained = climb(run_of(target, 0.6), [1.0], seconds=0.5)
    assert trained == []
    assert "the budget is spent" in end.why
    short = dataclasses.replace(run_of(target, 0.6), result=tb.Result.max_steps)
    end, trained = climb(short, [1.0])
    assert trained == []
    assert "cut short" in end.why
