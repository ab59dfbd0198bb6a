"""Does q mean what it says, on average over data? Ranks of the truth among draws of q.

For data simulated from the model, the true parameters are one more draw of the exact posterior:
their rank among draws of q(. | x) is uniform where q is right. Each test below is one statistic of
which that holds (certify/ranks.py).
"""

import dataclasses
import time
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import jax
import numpy as np
from jaxtyping import Float, Int

from .._numerics import key_words, x64
from .._types import Key, PyTree
from ..account import Budget
from ..families.base import AbstractFamily
from ..families.conditional import log_probs_at
from ..targets.base import Simulator
from .finding import About, Finding, FindingDetail, Verdict
from .ranks import (
    density_ranks,
    ecdf_band,
    ecdf_test,
    embedding,
    sbc_ranks,
    tarp_ranks,
    vsbc,
)
from .simulations import Amortised, Posteriors, features, posteriors, simulations
from .standards import STANDARDS, Standards

_MOST_NATS = 50.0  # to which a difference of log densities is cut: one draw must not decide a mean
_SOURCE = "docs/calibration.md"


@runtime_checkable
class Refit(Protocol):
    """A function that fits one data set, or with `vectorised` a batch of them."""

    def __call__(self, x: PyTree) -> AbstractFamily | Sequence[AbstractFamily]:
        """q of one data set, or a q for each of a batch."""
        ...


@dataclasses.dataclass(frozen=True)
class RanksDetail(FindingDetail):
    """What a calibration finding was computed from.

    Attributes:
        ranks: of the truth, for every simulation (and every coordinate).
        draws: the largest rank.
        p: the p-value of the finding.
        p_values: those of single coordinates.
    """

    ranks: Int[np.ndarray, "n *coordinates"]
    draws: int
    p: float
    p_values: tuple[float, ...] = ()


@dataclasses.dataclass(frozen=True)
class LearnsDetail(FindingDetail):
    """`linear`: nats of information that a linear regression of the parameters on x finds."""

    linear: float


def calibrate(
    q: Amortised,
    target: Simulator,
    key: Key = 0,
    *,
    n: int = 500,
    draws: int = 200,
    budget: Budget | None = None,
    standards: Standards = STANDARDS,
) -> tuple[Finding, ...]:
    """The findings "sbc", "expected coverage" and "tarp" of an amortised q, from `n` simulations.

    All of them in one program.

    Arguments:
        q: an amortised family.
        target: the simulator.
        key: of the simulations.
        n: number of simulations.
        draws: number of draws of q for each.
        budget: seconds after which no further chunk of 250 is started; evaluations are simulations.
        standards: the thresholds of the verdicts.
    """
    made = posteriors(q, target, key, n, draws, budget)
    return judge(made, target.coordinate_names, key, standards)


def calibrate_refits(
    refit: Refit,
    target: Simulator,
    key: Key = 0,
    *,
    n: int = 100,
    draws: int = 200,
    budget: Budget | None = None,
    standards: Standards = STANDARDS,
) -> tuple[Finding, ...]:
    """The same findings of an ordinary fit, made again for each of `n` simulated data sets.

    Arguments:
        refit: `refit(x) -> q` of one data set on the same unconstrained scale as `target`; or, with
            the attribute `vectorised = True`, of a batch of them -> a list of q.
        target: the simulator, as from tb.from_simulator.
        key: of the simulations.
        n: number of data sets.
        draws: number of draws of each q.
        budget: seconds after which no further fit is started.
        standards: the thresholds of the verdicts.
    """
    started = time.perf_counter()
    made = simulations(target, key, n)
    seconds = None if budget is None else budget.seconds
    fits = _fits(refit, made.x, len(made), None if seconds is None else started + seconds)
    count, seed = len(fits), key_words(key)[-1]
    pairs = [q.draw(draws, seed + 1 + i) for i, q in enumerate(fits)]
    true = np.array(
        [q.log_prob_on_host(z[None])[0] for q, z in zip(fits, made.z[:count], strict=True)]
    )
    x = jax.tree.map(lambda leaf: leaf[:count], made.x)
    z, log_q = np.stack([p[0] for p in pairs]), np.stack([p[1] for p in pairs])
    seconds = time.perf_counter() - started
    found = Posteriors(made.z[:count], x, z, log_q, true, target.circular, seconds, n)
    return judge(found, target.coordinate_names, key, standards)


def _fits(refit: Refit, x: PyTree, count: int, until: float | None) -> list[AbstractFamily]:
    """One fit of each data set, or those that can be made until then: at least one."""
    if getattr(refit, "vectorised", False):  # a mark that a user's function may carry
        return _listed(refit(x))
    fits: list[AbstractFamily] = []
    for i in range(count):
        if fits and until is not None and time.perf_counter() > until:
            break
        fits += _listed(refit(jax.tree.map(lambda leaf, i=i: leaf[i], x)))
    return fits


def _listed(fits: AbstractFamily | Sequence[AbstractFamily]) -> list[AbstractFamily]:
    return [fits] if isinstance(fits, AbstractFamily) else list(fits)


def judge(
    made: Posteriors, names: tuple[str, ...], key: Key = 0, standards: Standards = STANDARDS
) -> tuple[Finding, ...]:
    """The findings of simulations with draws of q for each."""
    return (
        _sbc(made, names, standards),
        _coverage(made, standards),
        _tarp(made, key, standards),
    )


def _sbc(made: Posteriors, names: tuple[str, ...], standards: Standards) -> Finding:
    """Ranks of each coordinate; the smallest p-value times the number of coordinates."""
    ranks, most = sbc_ranks(made), made.draws.shape[1]
    tests = [ecdf_test(ranks[:, j], most) for j in range(ranks.shape[1])]
    order = np.argsort([p - 1e-3 * d for p, d in tests])
    worst = int(order[0])
    p, deviation = min(1.0, tests[worst][0] * len(tests)), tests[worst][1]
    shape = _shape(ranks[:, worst] / most)
    significant = standards.significant
    where = tuple(f"`{names[j]}`" for j in order if tests[j][0] * len(tests) < significant)
    what = f"ranks of the truth among draws of q in `{names[worst]}`"
    detail = RanksDetail(ranks, most, p, tuple(t[0] for t in tests))
    source = "Talts et al. 2018; Saeilynoja et al. 2022"
    return _finding("sbc", what, deviation, shape, made, detail, source, standards, where)


def _coverage(made: Posteriors, standards: Standards) -> Finding:
    ranks, most = density_ranks(made), made.draws.shape[1]
    p, deviation = ecdf_test(ranks, most)
    excess = float(np.mean(ranks) / most - 0.5)
    shape = "q is too narrow (overconfident)" if excess > 0 else "q is too wide (underconfident)"
    what, source = "credibilities of the truth's highest-density set", "Hermans et al. 2022"
    detail = RanksDetail(ranks, most, p)
    return _finding("expected coverage", what, deviation, shape, made, detail, source, standards)


def _tarp(made: Posteriors, key: Key, standards: Standards) -> Finding:
    ranks, most = tarp_ranks(made, key), made.draws.shape[1]
    p, deviation = ecdf_test(ranks, most)
    what, shape = "distances from random points", _shape(ranks / most)
    detail = RanksDetail(ranks, most, p)
    return _finding("tarp", what, deviation, shape, made, detail, "Lemos et al. 2023", standards)


def _shape(u: Float[np.ndarray, "n"]) -> str:
    """What kind of departure from uniform this is, in words."""
    lean, spread = float(np.mean(u) - 0.5), float(np.var(u) * 12)
    if abs(lean) * np.sqrt(12 * len(u)) > 3 and abs(lean) > 0.25 * abs(spread - 1):
        return f"q is biased {'low' if lean > 0 else 'high'}"
    return "q is too narrow (overconfident)" if spread > 1 else "q is too wide (underconfident)"


def _finding(
    name: str,
    what: str,
    deviation: float,
    shape: str,
    made: Posteriors,
    detail: RanksDetail,
    source: str,
    standards: Standards,
    where: tuple[str, ...] = (),
) -> Finding:
    n, p = len(made.z), detail.p
    verdict = (
        Verdict.PASS
        if p >= standards.significant
        else Verdict.FAIL
        if deviation > standards.deviation_fail
        else Verdict.CAUTION
    )
    # The last chunk may be a few simulations short, which no budget has cut
    cut = "" if n >= 0.9 * made.asked else f" (the budget ended after {n} of {made.asked})"
    if verdict is Verdict.PASS:
        why = (
            f"The {what} look uniform over {n} simulations{cut}: p = {p:.2g}, largest deviation"
            f" {deviation:.3f}."
        )
    else:
        degree = ", though by little" if deviation < standards.deviation else ""
        found = f"{shape}{degree}; p = {p:.2g}, largest deviation {deviation:.3f}."
        why = f"The {what} are not uniform over {n} simulations{cut}: {found}"
    return Finding(
        name,
        deviation,
        0.5 / float(np.sqrt(n)),
        None,
        verdict,
        why,
        f"{source}; {_SOURCE}",
        where,
        detail,
    )


def learns(
    q: Amortised,
    target: Simulator,
    key: Key = 0,
    *,
    n: int = 1000,
    standards: Standards = STANDARDS,
) -> Finding:
    """Does q use the data at all, or is it the prior again?

    The number is E log q(z | x) - E log q(z | x'), x' the data of another draw: zero where q
    ignores x. A q that does although a linear regression of z on x finds something has failed to
    train; where the regression finds nothing either, the data may say nothing.
    """
    made = simulations(target, key, n)
    shuffled = np.roll(np.arange(len(made)), 1)
    with x64():
        own = log_probs_at(q, made.z, made.x)
        other = log_probs_at(q, made.z, jax.tree.map(lambda leaf: leaf[shuffled], made.x))
    difference = np.clip(np.asarray(own - other, np.float64), -_MOST_NATS, _MOST_NATS)
    value, error = float(difference.mean()), float(difference.std() / np.sqrt(len(made)))
    ignored = value < max(standards.learns, standards.errors * error)
    found = _linear_information(features(q, made.x), embedding(target.circular, made.z)(made.z))
    verdict = Verdict.FAIL if found > standards.learns_fail else Verdict.CAUTION
    verdict = verdict if ignored else Verdict.PASS
    if verdict is Verdict.PASS:
        why = (
            f"q depends on the data: they are worth {value:.2f} ± {error:.2f} nats to it (against"
            " other data)."
        )
    else:
        why = (
            f"q equals the prior: it does not depend on the data ({value:.3f} ± {error:.3f} nats). "
            + (
                "They do say something about the parameters (a linear regression finds it), so"
                " training failed: standardise x, take another encoder, train on."
                if verdict is Verdict.FAIL
                else (
                    "It may be that these data say nothing about the parameters; then nothing is"
                    " wrong."
                )
            )
        )
    return Finding(
        "learns",
        value,
        error,
        standards.learns,
        verdict,
        why,
        _SOURCE,
        detail=LearnsDetail(found),
        about=About.SEARCH,
    )


def _linear_information(x: Float[np.ndarray, "n p"], z: Float[np.ndarray, "n dim"]) -> float:
    """-1/2 log(1 - R^2) in nats, the largest over coordinates, of a ridge regression.

    It is fitted to one half of the rows and judged on the other.
    """
    half = len(x) // 2
    x = x - x[:half].mean(axis=0)
    if x.shape[1] > half:
        return 0.0
    level = z[:half].mean(axis=0)
    slope = np.linalg.solve(
        x[:half].T @ x[:half] + 0.01 * half * np.eye(x.shape[1]), x[:half].T @ (z[:half] - level)
    )
    rest = np.mean((z[half:] - level - x[half:] @ slope) ** 2, axis=0) / np.mean(
        (z[half:] - level) ** 2, axis=0
    )
    return float(np.max(-0.5 * np.log(np.clip(rest, 1e-12, 1.0))))


__all__ = [
    "LearnsDetail",
    "RanksDetail",
    "calibrate",
    "calibrate_refits",
    "density_ranks",
    "ecdf_band",
    "ecdf_test",
    "judge",
    "learns",
    "sbc_ranks",
    "tarp_ranks",
    "vsbc",
]
