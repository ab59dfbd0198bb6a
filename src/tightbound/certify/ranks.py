"""Ranks of the truth among draws of q, and whether they are uniform.

For data simulated from the model, the true parameters are one more draw of the exact posterior:
their rank among draws of q(. | x) is uniform where q is right.
"""

from collections.abc import Callable

import numpy as np
import scipy.special as sp
from jaxtyping import Float, Int

from .._numerics import host_rng
from .._types import Key
from .simulations import Posteriors

# Uniform samples behind each simultaneous band: p-values down to 1/2000 can be told.
_SIMULATED = 2000
_NULLS: dict[tuple[int, int], np.ndarray] = {}  # of null distributions, for each n and L
_MOST_LEVELS = 100  # ranks at which an ECDF is looked at: neighbours beyond say the same


def sbc_ranks(made: Posteriors) -> Int[np.ndarray, "n dim"]:
    """Rank of the true value of each coordinate among the L draws, in 0, ..., L.

    Ties are broken at random. Angles are ranked by their difference from the mean direction of the
    draws.

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


def density_ranks(made: Posteriors) -> Int[np.ndarray, "n"]:
    """How many draws have a higher density than the truth.

    Over L, the credibility of its highest-density set: expected coverage is the ECDF of that.

    Source: Hermans et al. 2022, section 3.
    """
    return np.sum(made.log_q > made.log_q_true[:, None], axis=1)


def tarp_ranks(made: Posteriors, key: Key = 0) -> Int[np.ndarray, "n"]:
    """How many draws lie closer to a random point than the truth does.

    Points are draws of the prior, by chance. Distances are in prior sds; of angles the chord. Sees
    errors that ranks of single coordinates cannot.

    Source: Lemos et al. 2023, algorithm 2 (TARP).
    """
    embed = embedding(made.circular, made.z)
    truth, draws = embed(made.z), embed(made.draws)
    points = truth[host_rng(key, "tarp").permutation(len(truth))]
    distance = np.linalg.norm(draws - points[:, None], axis=2)
    return np.sum(distance < np.linalg.norm(truth - points, axis=1)[:, None], axis=1)


def vsbc(made: Posteriors) -> Float[np.ndarray, "n dim"]:
    """Share of draws above the truth: its histogram leans where q is biased in a coordinate.

    Source: Yao et al. 2018, section 3.2 (VSBC), with draws in place of the distribution function of
    q.
    """
    return 1.0 - (sbc_ranks(made) + 0.5) / (made.draws.shape[1] + 1)


def ecdf_test(ranks: Int[np.ndarray, "n"], most: int) -> tuple[float, float]:
    """(p-value, largest deviation) of ranks in 0, ..., most from the uniform distribution.

    The statistic is the smallest pointwise binomial tail probability of their ECDF; its null
    distribution is simulated, so the p-value holds for the whole curve at once. The deviation is
    the largest |ECDF - uniform|.

    Source: Saeilynoja, Buerkner & Vehtari 2022, section 2.2.
    """
    counts, levels = _counts_at(ranks, most)
    smallest = _smallest_tail(counts[None], levels, len(ranks))[0]
    null = _null_tails(len(ranks), most)
    deviation = float(np.max(np.abs(counts / len(ranks) - levels)))
    return float((1 + np.sum(null <= smallest)) / (1 + len(null))), deviation


def ecdf_band(
    n: int, most: int, level: float = 0.95
) -> tuple[Float[np.ndarray, "levels"], Float[np.ndarray, "levels"], Float[np.ndarray, "levels"]]:
    """(levels, low, high): the band that holds an ECDF of uniform ranks with probability `level`.

    The whole ECDF, of n ranks in 0, ..., most.

    Source: Saeilynoja, Buerkner & Vehtari 2022, section 2.2; for pictures.
    """
    from scipy.stats import binom  # a third of a second of import that only pictures need

    _, levels = _counts_at(np.zeros(1, int), most)
    gamma = np.quantile(_null_tails(n, most), 1 - level)
    low = binom.ppf(gamma / 2, n, levels) / n
    high = binom.ppf(1 - gamma / 2, n, levels) / n
    return levels, low, high


def _grid(most: int) -> Int[np.ndarray, "levels"]:
    """The ranks at which the ECDF is looked at."""
    return np.unique(np.linspace(0, most - 1, min(most, _MOST_LEVELS)).astype(int))


def _counts_at(
    ranks: Int[np.ndarray, "n"], most: int
) -> tuple[Int[np.ndarray, "levels"], Float[np.ndarray, "levels"]]:
    at = _grid(most)
    return np.sum(ranks[:, None] <= at, axis=0), (at + 1) / (most + 1)


def _smallest_tail(
    counts: Int[np.ndarray, "samples levels"], levels: Float[np.ndarray, "levels"], n: int
) -> Float[np.ndarray, "samples"]:
    """The smallest two-sided binomial tail over the grid, for each row of counts."""
    # Binomial distribution functions by the incomplete beta function: faster than scipy.stats
    below = np.where(
        counts >= n, 1.0, sp.betainc(np.maximum(n - counts, 1e-300), counts + 1, 1 - levels)
    )
    above = np.where(
        counts <= 0, 1.0, sp.betainc(np.maximum(counts, 1e-300), n - counts + 1, levels)
    )
    return np.min(2 * np.minimum(below, above), axis=1)


def _null_tails(n: int, most: int) -> Float[np.ndarray, "samples"]:
    """The statistic of uniform ranks, simulated once for each n and number of draws."""
    key = (n, most)
    if key not in _NULLS:
        rng = np.random.default_rng(n * 100_003 + most)
        at = _grid(most)
        levels = (at + 1) / (most + 1)
        # The counts of uniform ranks in the cells of the grid are multinomial
        cells = np.diff(np.concatenate([[0.0], levels, [1.0]]))
        counts = np.cumsum(rng.multinomial(n, cells, size=_SIMULATED), axis=1)[:, :-1]
        _NULLS[key] = _smallest_tail(counts, levels, n)
    return _NULLS[key]


def embedding(
    circular: tuple[bool, ...], z: Float[np.ndarray, "n dim"]
) -> Callable[[Float[np.ndarray, "*batch dim"]], Float[np.ndarray, "*batch embedded"]]:
    """Coordinates in which distance makes sense: prior sds, and points on the circle for angles."""
    angles = np.array(circular)
    mean, sd = z.mean(axis=0), z.std(axis=0) + 1e-12

    def embed(z: Float[np.ndarray, "*batch dim"]) -> Float[np.ndarray, "*batch embedded"]:
        parts = [((z - mean) / sd)[..., ~angles], np.cos(z[..., angles]), np.sin(z[..., angles])]
        return np.concatenate(parts, axis=-1)

    return embed


__all__ = [
    "density_ranks",
    "ecdf_band",
    "ecdf_test",
    "embedding",
    "sbc_ranks",
    "tarp_ranks",
    "vsbc",
]
