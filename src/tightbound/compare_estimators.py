"""`tb.compare_estimators`: which gradient estimator is best for this target, q and objective?"""

import dataclasses
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Float

from ._numerics import as_key, scoped, to_device
from ._types import Key, PyTree, Scalar, Validated
from .compare import rich_table
from .estimators.base import AbstractEstimator
from .estimators.doubly import DoublyReparam
from .estimators.enumerate import Enumerate
from .estimators.measure_valued import MeasureValued
from .estimators.pathwise import Pathwise, StickTheLanding
from .estimators.quadrature import Quadrature
from .estimators.relaxed import Relaxed
from .estimators.score import Score
from .families.base import AbstractFamily
from .objectives.base import AbstractObjective
from .objectives.classic import ELBO, IWELBO
from .results import PairingError
from .storage import AnyPath
from .targets.base import AbstractTarget

if TYPE_CHECKING:
    import pandas  # half a second that `import tightbound` does without
    import rich.table

_RUNS = 3  # timings, of which the shortest counts
_WARM_UP = 20  # steps in which baselines that learn have forgotten where they began
# A variance of this share of the squared mean is rounding in float64: the estimator has no noise.
_ROUNDING = 1e-24


@dataclasses.dataclass(frozen=True)
class EstimatorComparison:
    """What `tb.compare_estimators` returns; prints as a table, in a notebook and with rich too.

    Attributes:
        table: one row per estimator, best first: `variance x cost`;
            `variance`, the sum over the directions of q's parameters, and its `stderr`;
            `evaluations` of the log density and `seconds` per gradient; `signal to noise`, the
            length of the mean gradient over the root of the variance; `bias`, "none" or "1/n".
        refused: name -> why an estimator cannot serve here.
        objective: what was differentiated.
        cost: "evaluations" or "seconds", the one that the order is by.
        estimators: name -> the estimator, ready to be given to tb.solvers.StochasticGradient.
    """

    table: "pandas.DataFrame"
    refused: dict[str, str]
    objective: AbstractObjective
    cost: str
    estimators: dict[str, AbstractEstimator]

    @property
    def best(self) -> AbstractEstimator:
        """The first of the table."""
        return self.estimators[str(self.table.index[0])]

    def __str__(self) -> str:
        head = f"Gradients of {type(self.objective).__name__}, best first by variance x {self.cost}"
        refused = "\n".join(f"- {name}: {reason}" for name, reason in self.refused.items())
        rest = f"\n\nNot for this target and q:\n{refused}" if refused else ""
        return f"{head}\n{self.table.to_string(float_format=_short)}{rest}"

    def _repr_html_(self) -> str:
        return self.table.to_html(float_format=_short)

    def __rich__(self) -> "rich.table.Table":
        title = f"gradients of {type(self.objective).__name__}, by variance x {self.cost}"
        return rich_table(self.table, "estimator", title, _short)

    def plot(self, path: AnyPath) -> Path:
        """Write a picture (SVG) of variance against cost, both on log scales.

        Needs the `plots` extra.
        """
        from .report.estimators import variance_and_cost

        return variance_and_cost(self, path)


@scoped
def compare_estimators(
    target: AbstractTarget,
    q: AbstractFamily,
    objective: AbstractObjective | None = None,
    *,
    key: Key = 0,
    draws: int = 16,
    repeats: Validated[int, "_check_arguments"] = 400,
    estimators: Mapping[str, AbstractEstimator] | None = None,
    cost: Validated[str, "_check_arguments"] = "evaluations",
) -> EstimatorComparison:
    """Variance times cost of every estimator that can serve the target, q and objective.

    Best first.

    Each gradient is taken `repeats` times at q as it stands, in q's own scale (`retract`: for a
    Gaussian in posterior sds), so that no unit of a parameter counts more than another. The order
    depends on q: judge at a q that is near the answer, where a fit spends its steps, such as
    `fit.q` of a short run. Variance x cost does not depend on the number of draws where the
    variance falls as 1/n, so that many and few draws compare fairly.

    Arguments:
        target: what q approximates.
        q: the member of a family at which gradients are compared.
        objective: ELBO() unless given.
        key: of the draws.
        draws: per gradient, rounded up to what groups, pairs and Sobol points ask for.
        repeats: gradients of each estimator; the relative error of a variance is about 1.5 /
            sqrt(repeats) or more.
        estimators: others to compare, by name; None are all that the library has, with their main
            switches.
        cost: "evaluations" of the log density (a value counts as much as a gradient), the same on
            every machine; or "seconds" per gradient, as measured here with all repeats in one
            batch.

    Raises:
        PairingError: no estimator can serve; the message says why for each.
        ValueError: `cost` is neither, or `repeats` is below 2.
    """
    _check_arguments(repeats, cost)
    objective = ELBO() if objective is None else objective
    named = candidates(draws, objective) if estimators is None else dict(estimators)
    refused = {
        name: reason for name, e in named.items() if (reason := refusal(e, target, q, objective))
    }
    valid = {name: e for name, e in named.items() if name not in refused}
    if not valid:
        reasons = " ".join(f"{name}: {reason}" for name, reason in refused.items())
        raise PairingError(
            f"compare_estimators: no estimator serves {type(q).__name__} here. {reasons}"
        )
    # Every estimator gets the same key: where two draw alike they are compared on the same draws
    rows = {
        name: _measured(e, target, q, objective, as_key(key), repeats, cost)
        for name, e in valid.items()
    }
    return EstimatorComparison(_sorted(rows), refused, objective, cost, valid)


def _check_arguments(repeats: int, cost: str) -> None:
    if cost not in ("evaluations", "seconds"):
        raise ValueError(
            f'compare_estimators: `cost` must be "evaluations" or "seconds", got {cost!r}.'
        )
    if repeats < 2:
        raise ValueError(
            f"compare_estimators: `repeats` must be at least 2 to have a variance, got {repeats}."
        )


def candidates(draws: int, objective: AbstractObjective) -> dict[str, AbstractEstimator]:
    """The library's estimators with their main switches.

    `draws` rounded up to a power of two times two groups.
    """
    # Antithetic pairs ask for two groups, Sobol points for a power of two.
    unit = 2 * objective.group
    n = unit * 2 ** max(0, int(np.ceil(np.log2(max(draws, 1) / unit))))
    n = 1 << (n - 1).bit_length() if objective.group == 1 else n
    # Measure-valued derivatives evaluate a pair for each parameter: an eighth of the draws keeps
    # their cost of the order of the others' in a few dimensions.
    pairs = max(n // 8, objective.group)
    pairs = -(-pairs // objective.group) * objective.group
    return {
        "Quadrature": Quadrature(20),
        "Enumerate": Enumerate(),
        "StickTheLanding": StickTheLanding(n),
        "StickTheLanding antithetic": StickTheLanding(n, noise="antithetic"),
        "StickTheLanding sobol": (
            StickTheLanding(n, noise="sobol") if n & (n - 1) == 0 else StickTheLanding(n)
        ),
        "Pathwise": Pathwise(n),
        "Pathwise antithetic": Pathwise(n, noise="antithetic"),
        "DoublyReparam": DoublyReparam(n),
        "Score": Score(n),
        "Score optimal": Score(n, baseline="optimal"),
        "Score taylor": Score(n, baseline="taylor"),
        "MeasureValued": MeasureValued(pairs),
        "MeasureValued independent": MeasureValued(pairs, coupled=False),
        "Relaxed": Relaxed(n),
    }


def refusal(
    estimator: AbstractEstimator,
    target: AbstractTarget,
    q: AbstractFamily,
    objective: AbstractObjective,
) -> str | None:
    """Why the estimator cannot serve, in a sentence; None where it can."""
    try:
        estimator.check(target, q, objective)
    except PairingError as error:
        return str(error)
    name = type(objective).__name__
    if not estimator.unbiased_for:
        return "it is biased for every objective."
    if type(objective) in estimator.unbiased_for or estimator.exact:
        return None
    # A function of averages (a logarithm, a ratio) has a bias of order 1/n with any estimator that
    # is unbiased for the averages. One that is not even right for the IWELBO holds for the ELBO
    # alone (StickTheLanding leaves out a term whose mean is zero there): more draws do not help it.
    if objective.averages or IWELBO not in estimator.unbiased_for:
        return f"its gradient of {name} is biased, and more draws do not mend that."
    return None


def _measured(
    estimator: AbstractEstimator,
    target: AbstractTarget,
    q: AbstractFamily,
    objective: AbstractObjective,
    key: jax.Array,
    repeats: int,
    cost: str,
) -> dict[str, float | str]:
    """One row of the table."""
    prepare, draw = jr.split(key)
    moving = to_device(q, q.dtype)
    state = to_device(estimator.prepare(target, q, prepare), q.dtype)
    state = _warmed(estimator, objective, target, moving, state, draw)
    keys = jr.split(draw, repeats)
    sample = np.asarray(_gradients(estimator, objective, target, moving, state, keys))  # compiles
    seconds = min(
        _seconds(lambda: _gradients(estimator, objective, target, moving, state, keys))
        for _ in range(_RUNS)
    )
    away = np.sum((sample - sample.mean(0)) ** 2, axis=1)
    variance = float(away.sum() / (repeats - 1))
    variance = (
        0.0 if variance < _ROUNDING * max(1.0, float(np.sum(sample.mean(0) ** 2))) else variance
    )
    used = {
        "evaluations": float(estimator.evaluations_used(target, state)),
        "seconds": seconds / repeats,
    }
    signal = float(np.linalg.norm(sample.mean(0)))
    return {
        "variance x cost": variance * used[cost],
        "variance": variance,
        "stderr": float(away.std(ddof=1) / np.sqrt(repeats)) if variance else 0.0,
        **used,
        "signal to noise": signal / np.sqrt(variance) if variance else np.inf,
        "bias": "none" if objective.averages or estimator.exact else "1/n",
    }


def _seconds(run: Callable[[], jax.Array]) -> float:
    started = time.perf_counter()
    jax.block_until_ready(run())
    return time.perf_counter() - started


@eqx.filter_jit
def _gradients(
    estimator: AbstractEstimator,
    objective: AbstractObjective,
    target: AbstractTarget,
    q: AbstractFamily,
    state: PyTree,
    keys: jax.Array,
) -> Float[jax.Array, "repeats p"]:
    """One gradient for each key, in the scale of q's own steps."""
    at_rest = jax.tree.map(jnp.zeros_like, eqx.filter(q, eqx.is_inexact_array))

    def loss(step: AbstractFamily, key: jax.Array) -> Scalar:
        return estimator.surrogate(objective, target, q.retract(step), state, key)[0]

    return jax.vmap(lambda key: ravel_pytree(jax.grad(loss)(at_rest, key))[0])(keys)


@eqx.filter_jit
def _warmed(
    estimator: AbstractEstimator,
    objective: AbstractObjective,
    target: AbstractTarget,
    q: AbstractFamily,
    state: PyTree,
    key: jax.Array,
) -> PyTree:
    """The estimator's state after some steps at the same q: baselines that learn have learnt."""
    dynamic, static = eqx.partition(state, eqx.is_array)

    def step(dynamic: PyTree, key: jax.Array) -> tuple[PyTree, None]:
        new = estimator.surrogate(objective, target, q, eqx.combine(dynamic, static), key)[1]
        return eqx.filter(new, eqx.is_array), None

    # `key` is that of the gradients: folded, so that the warm-up draws others
    keys = jr.split(jr.fold_in(key, 1), _WARM_UP)
    return eqx.combine(jax.lax.scan(step, dynamic, keys)[0], static)


def _sorted(rows: dict[str, dict[str, float | str]]) -> "pandas.DataFrame":
    import pandas as pd

    table = pd.DataFrame.from_dict(rows, orient="index")
    # Of two without noise the cheaper one comes first
    return table.sort_values(["variance x cost", "evaluations"], kind="stable")


def _short(value: float) -> str:
    return f"{value:.3g}"


__all__ = ["EstimatorComparison", "candidates", "compare_estimators", "refusal"]
