"""Does q mean what it says, on average over data? Ranks of the truth among draws, and what follows
from them.

For data simulated from the model, the true parameters are one more draw of the exact posterior:
their rank among draws of q(. | x) is uniform where q is right. Each test below is one statistic of
which that holds.
"""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import scipy.special as sp
import scipy.stats

from .._numerics import host_rng, key_words, x64
from .._types import Budget, PyTree
from ..families.conditional import log_probs_at
from .finding import Finding, Verdict
from .simulations import Posteriors, features, posteriors, simulations

_ALPHA = 0.01
_SIMULATED = 2000  # uniform samples behind each simultaneous band
_SOURCE = "docs/calibration.md"
_SMALL = 0.06  # deviation of the ECDF that is significant but of little consequence
_LARGE = 0.15


def sbc_ranks(made: Posteriors) -> np.ndarray:
    """Rank of the true value of each coordinate among the L draws, `[N, d]` in 0, ..., L (ties
    broken at random).

    Angles are ranked by their difference from the mean direction of the draws.

    Source: Talts et al. 2018, algorithm 1.
    """
    truth, draws = made.z, made.draws
    if any(made.circular):
        angles = np.array(made.circular)
        centre = np.arctan2(np.sin(draws).mean(axis=1), np.cos(draws).mean(axis=1))
        turned = lambda a, c: np.where(angles, np.mod(a - c + np.pi, 2 * np.pi) - np.pi, a)  # noqa: E731
        truth, draws = turned(truth, centre), turned(draws, centre[:, None])
    ties = np.sum(draws == truth[:, None], axis=1)
    rng = np.random.default_rng(0)
    return np.sum(draws < truth[:, None], axis=1) + np.floor(
        rng.uniform(size=ties.shape) * (ties + 1)
    ).astype(int)


def density_ranks(made: Posteriors) -> np.ndarray:
    """How many draws have a higher density than the truth, `[N]`: over L, the credibility of its
    highest-density set.

    Expected coverage is its ECDF. Source: Hermans et al. 2022, section 3.
    """
    return np.sum(made.log_q > made.log_q_true[:, None], axis=1)


def tarp_ranks(made: Posteriors, key: Any = 0) -> np.ndarray:
    """How many draws lie closer to a random point than the truth does, `[N]`.

    Points are draws of the prior, by chance.

    Distances are in prior sds; of angles the chord. Sees errors that ranks of single coordinates
    cannot.

    Source: Lemos et al. 2023, algorithm 2 (TARP).
    """
    embed = _embedding(made.circular, made.z)
    truth, draws = embed(made.z), embed(made.draws)
    points = truth[host_rng(key, "tarp").permutation(len(truth))]
    distance = np.linalg.norm(draws - points[:, None], axis=2)
    return np.sum(distance < np.linalg.norm(truth - points, axis=1)[:, None], axis=1)


def vsbc(made: Posteriors) -> np.ndarray:
    """Share of draws above the truth, `[N, d]`: its histogram leans where q is biased in a
    coordinate.

    Source: Yao et al. 2018, section 3.2 (VSBC), with draws in place of the distribution function of
    q.
    """
    return 1.0 - (sbc_ranks(made) + 0.5) / (made.draws.shape[1] + 1)


def ecdf_test(ranks: np.ndarray, most: int) -> tuple[float, float]:
    """(p-value, largest deviation) of ranks in 0, ..., most from the uniform distribution, over
    their whole ECDF.

    The statistic is the smallest pointwise binomial tail probability of the ECDF; its null
    distribution is simulated, so the p-value holds for the whole curve at once. The deviation is
    the largest |ECDF - uniform|.

    Source: Saeilynoja, Buerkner & Vehtari 2022, section 2.2.
    """
    counts, levels = _counts_at(ranks, most)
    smallest = _smallest_tail(counts[None], levels, len(ranks))[0]
    null = _null_tails(len(ranks), most)
    deviation = float(np.max(np.abs(counts / len(ranks) - levels)))
    return float((1 + np.sum(null <= smallest)) / (1 + len(null))), deviation


def ecdf_band(n: int, most: int, level: float = 0.95) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(levels, low, high): the band that holds the whole ECDF of n uniform ranks in 0, ..., most
    with probability `level`.

    Source: Saeilynoja, Buerkner & Vehtari 2022, section 2.2; for pictures.
    """
    _, levels = _counts_at(np.zeros(1, int), most)
    gamma = np.quantile(_null_tails(n, most), 1 - level)
    low = scipy.stats.binom.ppf(gamma / 2, n, levels) / n
    high = scipy.stats.binom.ppf(1 - gamma / 2, n, levels) / n
    return levels, low, high


def _grid(most: int) -> np.ndarray:
    """At most 100 ranks at which the ECDF is looked at."""
    return np.unique(np.linspace(0, most - 1, min(most, 100)).astype(int))


def _counts_at(ranks: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    at = _grid(most)
    return np.sum(ranks[:, None] <= at, axis=0), (at + 1) / (most + 1)


def _smallest_tail(counts: np.ndarray, levels: np.ndarray, n: int) -> np.ndarray:
    """The smallest two-sided binomial tail over the grid, for each row of counts."""
    # binomial distribution functions by the incomplete beta function: faster than scipy.stats
    below = np.where(
        counts >= n, 1.0, sp.betainc(np.maximum(n - counts, 1e-300), counts + 1, 1 - levels)
    )
    above = np.where(
        counts <= 0, 1.0, sp.betainc(np.maximum(counts, 1e-300), n - counts + 1, levels)
    )
    return np.min(2 * np.minimum(below, above), axis=1)


def _null_tails(n: int, most: int) -> np.ndarray:
    key = (n, most)
    if key not in _NULLS:
        rng = np.random.default_rng(n * 100_003 + most)
        at = _grid(most)
        levels = (at + 1) / (most + 1)
        # the counts of uniform ranks in the cells of the grid are multinomial
        cells = np.diff(np.concatenate([[0.0], levels, [1.0]]))
        counts = np.cumsum(rng.multinomial(n, cells, size=_SIMULATED), axis=1)[:, :-1]
        _NULLS[key] = _smallest_tail(counts, levels, n)
    return _NULLS[key]


_NULLS: dict[tuple[int, int], np.ndarray] = {}


def calibrate(
    q: Any,
    target: Any,
    key: Any = 0,
    *,
    n: int = 500,
    draws: int = 200,
    budget: Budget | None = None,
) -> tuple[Finding, ...]:
    """The findings "sbc", "coverage" and "tarp" of an amortised q: `n` simulations, `draws` draws
    each, all in one program.

    Arguments:
        q: an amortised family.
        target: the simulator.
        key: of the simulations.
        n: number of simulations.
        draws: number of draws of q for each.
        budget: seconds after which no further chunk of 250 is started; evaluations are simulations.
    """
    return judge(posteriors(q, target, key, n, draws, budget), target.coordinate_names, key)


def calibrate_refits(
    refit: Callable[[PyTree], Any],
    target: Any,
    key: Any = 0,
    *,
    n: int = 100,
    draws: int = 200,
    budget: Budget | None = None,
) -> tuple[Finding, ...]:
    """The same findings of an ordinary fit, which is made again for each of `n` simulated data
    sets.

    Arguments:
        refit: `refit(x) -> q` of one data set on the same unconstrained scale as `target`; or, with
            the attribute `vectorised = True`, of a batch of them -> a list of q.
        target: the simulator, as from tb.from_simulator.
        key: of the simulations.
        n: number of data sets.
        draws: number of draws of each q.
        budget: seconds after which no further fit is started.
    """
    import time

    started = time.perf_counter()
    made = simulations(target, key, n)
    if getattr(refit, "vectorised", False):
        fits = list(refit(made.x))
    else:
        fits = []
        for i in range(len(made)):
            if (
                fits
                and budget is not None
                and budget.seconds is not None
                and time.perf_counter() - started > budget.seconds
            ):
                break
            fits.append(refit(jax.tree.map(lambda leaf, i=i: leaf[i], made.x)))
    count, seed = len(fits), key_words(key)[-1]
    pairs = [q.draw(draws, seed + 1 + i) for i, q in enumerate(fits)]
    true = np.array(
        [q.log_prob_on_host(z[None])[0] for q, z in zip(fits, made.z[:count], strict=True)]
    )
    x = jax.tree.map(lambda leaf: leaf[:count], made.x)
    z, log_q = np.stack([p[0] for p in pairs]), np.stack([p[1] for p in pairs])
    seconds = time.perf_counter() - started
    found = Posteriors(made.z[:count], x, z, log_q, true, target.circular, seconds, n)
    return judge(found, target.coordinate_names, key)


def judge(made: Posteriors, names: tuple[str, ...], key: Any = 0) -> tuple[Finding, ...]:
    """The findings of simulations with draws of q for each."""
    return _sbc(made, names), _coverage(made), _tarp(made, key)


def _sbc(made: Posteriors, names: tuple[str, ...]) -> Finding:
    """Ranks of each coordinate; the smallest p-value times the number of coordinates."""
    ranks, most = sbc_ranks(made), made.draws.shape[1]
    tests = [ecdf_test(ranks[:, j], most) for j in range(ranks.shape[1])]
    order = np.argsort([p - 1e-3 * d for p, d in tests])
    worst = int(order[0])
    p, deviation = min(1.0, tests[worst][0] * len(tests)), tests[worst][1]
    shape = _shape(ranks[:, worst] / most)
    where = tuple(f"`{names[j]}`" for j in order if tests[j][0] * len(tests) < _ALPHA)
    what = f"ranks of the truth among draws of q in `{names[worst]}`"
    detail = {"ranks": ranks, "draws": most, "p_values": [t[0] for t in tests]}
    return _finding(
        "sbc",
        what,
        p,
        deviation,
        shape,
        made,
        detail,
        "Talts et al. 2018; Saeilynoja et al. 2022",
        where,
    )


def _coverage(made: Posteriors) -> Finding:
    ranks, most = density_ranks(made), made.draws.shape[1]
    p, deviation = ecdf_test(ranks, most)
    excess = float(np.mean(ranks) / most - 0.5)
    shape = "q is too narrow (overconfident)" if excess > 0 else "q is too wide (underconfident)"
    detail = {"ranks": ranks, "draws": most}
    what = "credibilities of the truth's highest-density set"
    return _finding(
        "expected coverage", what, p, deviation, shape, made, detail, "Hermans et al. 2022"
    )


def _tarp(made: Posteriors, key: Any) -> Finding:
    ranks, most = tarp_ranks(made, key), made.draws.shape[1]
    p, deviation = ecdf_test(ranks, most)
    detail = {"ranks": ranks, "draws": most}
    what, shape = "distances from random points", _shape(ranks / most)
    return _finding("tarp", what, p, deviation, shape, made, detail, "Lemos et al. 2023")


def _shape(u: np.ndarray) -> str:
    """What kind of departure from uniform this is, in words."""
    lean, spread = float(np.mean(u) - 0.5), float(np.var(u) * 12)
    if abs(lean) * np.sqrt(12 * len(u)) > 3 and abs(lean) > 0.25 * abs(spread - 1):
        return f"q is biased {'low' if lean > 0 else 'high'}"
    return "q is too narrow (overconfident)" if spread > 1 else "q is too wide (underconfident)"


def _finding(
    name: str, what: str, p: float, deviation: float, shape: str, made: Posteriors, detail: dict[str, Any], source: str,
    where: tuple[str, ...] = (),
) -> Finding:  # fmt: skip
    n = len(made.z)
    verdict = (
        Verdict.PASS if p >= _ALPHA else Verdict.FAIL if deviation > _LARGE else Verdict.CAUTION
    )
    cut = "" if n >= 0.9 * made.asked else f" (the budget ended after {n} of {made.asked})"
    if verdict is Verdict.PASS:
        why = (
            f"The {what} look uniform over {n} simulations{cut}: p = {p:.2g}, largest deviation"
            f" {deviation:.3f}."
        )
    else:
        degree = ", though by little" if deviation < _SMALL else ""
        found = f"{shape}{degree}; p = {p:.2g}, largest deviation {deviation:.3f}."
        why = f"The {what} are not uniform over {n} simulations{cut}: {found}"
    return Finding(
        name,
        deviation,
        0.5 / np.sqrt(n),
        None,
        verdict,
        why,
        f"{source}; {_SOURCE}",
        where,
        {**detail, "p": p},
    )


def learns(q: Any, target: Any, key: Any = 0, *, n: int = 1000) -> Finding:
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
    difference = np.clip(np.asarray(own - other, np.float64), -50.0, 50.0)
    value, error = float(difference.mean()), float(difference.std() / np.sqrt(len(made)))
    ignored = value < max(0.02, 2 * error)
    found = _linear_information(features(q, made.x), _embedding(target.circular, made.z)(made.z))
    verdict = Verdict.PASS if not ignored else Verdict.FAIL if found > 0.05 else Verdict.CAUTION
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
    return Finding("learns", value, error, 0.02, verdict, why, _SOURCE, detail={"linear": found})


def _linear_information(x: np.ndarray, z: np.ndarray) -> float:
    """-1/2 log(1 - R^2), the largest over coordinates, of a ridge regression judged on other rows.

    Nats.
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


def _embedding(circular: tuple[bool, ...], z: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Coordinates in which distance makes sense: prior sds, and points on the circle for angles."""
    angles = np.array(circular)
    mean, sd = z.mean(axis=0), z.std(axis=0) + 1e-12

    def embed(z):
        parts = [((z - mean) / sd)[..., ~angles], np.cos(z[..., angles]), np.sin(z[..., angles])]
        return np.concatenate(parts, axis=-1)

    return embed


__all__ = [
    "calibrate", "calibrate_refits", "density_ranks", "ecdf_band", "ecdf_test", "judge", "learns", "sbc_ranks",
    "tarp_ranks", "vsbc",
]  # fmt: skip
