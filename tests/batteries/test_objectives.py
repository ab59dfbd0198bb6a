"""Every objective passes its battery; objectives broken on purpose fail it.

OBJECTIVES: name -> a function that makes (objective, options of check_objective). Adding an
objective is one line.
"""

from typing import ClassVar

import equinox as eqx
import jax.numpy as jnp
import pytest

from tightbound.objectives import (
    ELBO,
    IWELBO,
    VRIWAE,
    AbstractObjective,
    ChiUpper,
    Fisher,
    ForwardKL,
    Renyi,
    SoftmaxWeighted,
    Source,
    WakePhase,
)
from tightbound.testing import NEIGHBOURS, check_objective, check_order

OBJECTIVES = {
    "ELBO": lambda: (ELBO(), {}),
    "IWELBO 5": lambda: (IWELBO(5), {}),
    "Renyi 0.5": lambda: (Renyi(0.5), {}),
    "Renyi 1.3": lambda: (Renyi(1.3), {}),
    "VRIWAE 5": lambda: (VRIWAE(0.4, 5), {}),
    "ChiUpper 1.5": lambda: (ChiUpper(1.5), {"upper": True}),
    "WakePhase": lambda: (WakePhase(), {"upper": True}),
    "Fisher": lambda: (Fisher(), {"divergence": True}),
    "ForwardKL": lambda: (ForwardKL(), {"batches": 2000}),
    "SoftmaxWeighted 1": lambda: (SoftmaxWeighted(1), {"like": ELBO()}),
    # Of many draws it tends to -log Z - KL(p || q): it prefers any q that is not the posterior.
    "SoftmaxWeighted 50": lambda: (
        SoftmaxWeighted(50), {"misleading": NEIGHBOURS, "batches": 40}),
}  # fmt: skip


@pytest.mark.parametrize("name", OBJECTIVES)
def test_objective(name, key):
    objective, options = OBJECTIVES[name]()
    check_objective(objective, key, **options)


def test_bounds_are_ordered(key):
    check_order(
        [Renyi(1.3), ELBO(), IWELBO(2), IWELBO(5), IWELBO(20)],
        key,
        upper=[ChiUpper(1.5), ChiUpper(2.0)],
    )
    check_order([ELBO(), Renyi(0.5)], key, upper=[WakePhase()])


# -- negative controls


class Wrong(AbstractObjective):
    """The ELBO with one thing wrong."""

    fault: str = eqx.field(static=True)
    drawn_from: ClassVar[Source] = Source.q

    def loss(self, draws):
        if self.fault == "sign":
            return jnp.mean(draws.log_w)
        if self.fault == "entropy left out":
            return -jnp.mean(draws.log_p)
        if self.fault == "overflow":
            return -jnp.mean(draws.log_w) + 1e-300 * jnp.mean(jnp.exp(draws.log_w))
        return -jnp.mean(draws.log_w) + 0.1 * jnp.var(draws.log_w)  # right at q = posterior only

    def exact(self, target, q):
        return ELBO().exact(target, q)


WRONG = {
    "sign": "at q = posterior",
    "entropy left out": "at q = posterior",
    "another divergence": "not the `exact` one",
    "overflow": "not finite for log weights of 1e3",
}


@pytest.mark.parametrize(("fault", "sentence"), WRONG.items(), ids=WRONG)
def test_objective_battery_catches(fault, sentence, key):
    with pytest.raises(AssertionError, match=sentence):
        check_objective(Wrong(fault), key)


class Tempered(ForwardKL):
    """Forward KL of another power of q: minimal at the posterior no more."""

    def loss(self, draws):
        return -0.9 * jnp.mean(draws.log_q)


def test_objective_battery_catches_a_wrong_loss_of_simulations(key):
    with pytest.raises(AssertionError, match="at q = posterior the loss is not its entropy"):
        check_objective(Tempered(), key)


def test_objective_battery_catches_a_bound_that_misleads(key):
    with pytest.raises(AssertionError, match="has no larger loss than the posterior itself"):
        check_objective(SoftmaxWeighted(50), key, batches=40)
    with pytest.raises(AssertionError, match="is listed as misleading"):
        check_objective(ELBO(), key, misleading=("too wide",))


def test_order_battery_catches_bounds_out_of_order(key):
    with pytest.raises(AssertionError, match="exceeds"):
        check_order([IWELBO(5), ELBO()], key)
