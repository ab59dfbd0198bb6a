"""Is q right at one data set?

Could the model have produced it, and can a classifier tell q from the posterior there?
"""

import dataclasses
from collections.abc import Callable
from typing import TypeAlias

import jax
import numpy as np
from jaxtyping import Bool, Float

from .._numerics import host_rng, key_words, x64
from .._types import Key, PyTree
from ..certify.finding import About, Finding, FindingDetail, Verdict
from ..certify.simulations import Amortised, features, posteriors, simulations
from ..certify.standards import STANDARDS, Standards
from ..families.conditional import Scaling
from ..targets.base import Simulator

_NEIGHBOURS = 10  # simulations whose mean distance says how far a data set is from all of them
_DRAWS_FOR_SCALE = 50  # of q at each simulation: its mean and sd there, to a tenth of an sd
_DRAWS_AT_X = 1000  # of q at the data, that the classifier is asked about
# Simulations within the distance of this share of them count fully in the classifier at x.
_NEAR = 0.2
_RIDGE = 1e-3  # of the classifier, in units of the average of its Gram matrix's diagonal
_WIDTHS = (0.5, 1.0, 2.0)  # of the random features, as frequencies in sds of q
_CLIP = 10.0  # sds of q beyond which a draw counts as lying there: far ones would rule the fit
_TINY = 1e-12  # below any sd or squared distance that is meant
_SOURCE = "docs/calibration.md"


@dataclasses.dataclass(frozen=True)
class SimulableDetail(FindingDetail):
    """`p`: the p-value; `outside`: how many numbers of x lie outside those simulated."""

    p: float
    outside: int


@dataclasses.dataclass(frozen=True)
class ClassifierDetail(FindingDetail):
    """`p`: the p-value of "a classifier cannot tell"."""

    p: float


def simulable(
    q: Amortised,
    target: Simulator,
    x: PyTree,
    key: Key = 0,
    *,
    n: int = 1000,
    standards: Standards = STANDARDS,
) -> Finding:
    """Could the model have produced x? Its distance to simulated data, against theirs.

    The statistic is the mean distance to the 10 nearest of n/2 simulations, in standardised x; the
    p-value is its rank among those of the other n/2 (exact for an x that is simulated). A small one
    means that the model is misspecified, or the prior too narrow, and that q extrapolates: its
    answer at x means nothing.
    """
    made = simulations(target, key, n)
    reference, half = features(q, made.x), len(made) // 2
    at = features(q, jax.tree.map(lambda leaf: np.asarray(leaf)[None], x))
    distance = _nearest(np.concatenate([reference[half:], at]), reference[:half])
    p = float((1 + np.sum(distance[:-1] >= distance[-1])) / len(distance))
    ratio = float(distance[-1] / np.median(distance[:-1]))
    outside = _outside(q.scaling, x)
    verdict = Verdict.CAUTION if ratio < standards.simulable_fail else Verdict.FAIL
    verdict = Verdict.PASS if p > standards.simulable else verdict
    reason = (
        f"x is {ratio:.1f} times as far from simulated data as these are from each other (p ="
        f" {p:.2g})"
    )
    if outside:
        reason += f"; {outside} of its numbers lie outside the range of the simulations"
    why = (
        f"x looks like simulated data: p = {p:.2g}."
        if verdict is Verdict.PASS
        else (
            f"{reason}: the model does not produce such data, and q extrapolates. Mind the model,"
            " or widen the prior."
        )
    )
    return Finding(
        "simulable",
        ratio,
        np.nan,
        None,
        verdict,
        why,
        _SOURCE,
        detail=SimulableDetail(p, outside),
        about=About.DENSITY,
    )


def _nearest(
    points: Float[np.ndarray, "n p"], reference: Float[np.ndarray, "m p"]
) -> Float[np.ndarray, "n"]:
    """The mean distance of each point to the nearest of the reference."""
    square = (
        np.sum(points**2, axis=1)[:, None] + np.sum(reference**2, axis=1) - 2 * points @ reference.T
    )
    k = min(_NEIGHBOURS, square.shape[1] - 1)
    nearest = np.partition(square, k, axis=1)[:, :_NEIGHBOURS]
    return np.sqrt(np.maximum(nearest, 0.0)).mean(axis=1)


def _outside(scaling: Scaling, x: PyTree) -> int:
    """How many numbers of x lie outside the range of the pilot simulations."""
    parts = zip(
        *(jax.tree.leaves(tree) for tree in (x, scaling.x_low, scaling.x_high)), strict=True
    )
    return sum(
        int(np.sum((np.asarray(v) < low) | (np.asarray(v) > high))) for v, low, high in parts
    )


def local_c2st(
    q: Amortised,
    target: Simulator,
    x: PyTree,
    key: Key = 0,
    *,
    n: int = 2000,
    width: int = 300,
    flips: int = 200,
    standards: Standards = STANDARDS,
) -> Finding:
    """Can a classifier tell q's draws from the posterior's, near this x?

    A local classifier two-sample test. A least-squares classifier on random cosine features of (z,
    x) is trained to tell simulated pairs (z_i, x_i) from (z_i', x_i), z_i' ~ q(. | x_i). Its mean
    squared score at draws of q(. | x) is the statistic; swapping z_i and z_i' within pairs, which
    changes nothing where q is right, gives the null distribution. Least squares in place of a
    network makes all `flips` null classifiers one matrix product.

    Source: Linhart, Gramfort & Rodrigues 2023, algorithm 1 (L-C2ST), with the classifier and the
    null changed as above.
    """
    rng = host_rng(key, "c2st")
    pairs = _pairs(q, target, x, key, n)
    statistics = _scores_at_x(pairs, rng, width, flips)
    p = float(np.mean(statistics >= statistics[0]))
    ratio = float(statistics[0] / np.median(statistics[1:]))
    verdict = Verdict.CAUTION if ratio < standards.c2st_fail else Verdict.FAIL
    verdict = Verdict.PASS if p >= standards.significant else verdict
    why = (
        f"A classifier cannot tell q's draws from the posterior's near x: p = {p:.2g}."
        if verdict is Verdict.PASS
        else (
            f"A classifier tells q's draws from the posterior's near x: p = {p:.2g}, {ratio:.1f}"
            " times the score of chance. Refine q at x (tb.refine), or train on."
        )
    )
    return Finding(
        "local c2st",
        ratio,
        np.nan,
        None,
        verdict,
        why,
        "Linhart et al. 2023; docs/calibration.md",
        detail=ClassifierDetail(p),
    )


RandomFeatures: TypeAlias = Callable[
    [Float[np.ndarray, "n dim"], Float[np.ndarray, "n p"]], Float[np.ndarray, "n width"]
]
"""Of (z, standardised x)."""


@dataclasses.dataclass(frozen=True)
class _Pairs:
    """What the classifier is trained on, and what it is asked about.

    Draws are whitened by q at their own data: what is wrong with q is then seen apart from how z
    depends on x.

    Attributes:
        true: z_i of the simulations.
        false: z_i' ~ q(. | x_i).
        here: draws of q at x.
        away: standardised x_i - x.
    """

    true: Float[np.ndarray, "n dim"]
    false: Float[np.ndarray, "n dim"]
    here: Float[np.ndarray, "draws dim"]
    away: Float[np.ndarray, "n p"]


def _pairs(q: Amortised, target: Simulator, x: PyTree, key: Key, n: int) -> _Pairs:
    with x64():
        made = posteriors(q, target, key, n, _DRAWS_FOR_SCALE + 1)
        z_here = np.asarray(q.at(x).sample(key_words(key)[-1] + 2, shape=(_DRAWS_AT_X,)))
    at = features(q, jax.tree.map(lambda leaf: np.asarray(leaf)[None], x))
    angles = np.array(target.circular)
    # The first draw at each x is the false one; the others give the scale that it is whitened by.
    whiten = _whitening(made.draws[:, 1:], angles)
    return _Pairs(
        true=whiten(made.z),
        false=whiten(made.draws[:, 0]),
        here=_whitening(z_here[None], angles)(z_here),
        away=features(q, made.x) - at,
    )


def _scores_at_x(
    pairs: _Pairs, rng: np.random.Generator, width: int, flips: int
) -> Float[np.ndarray, "tests"]:
    """The classifier's mean squared score at x, then those of the null classifiers."""
    # The nearer a simulation is to x, the more it says about q there.
    square = np.sum(pairs.away**2, axis=1)
    weights = np.exp(-0.5 * square / max(np.quantile(square, _NEAR), _TINY))
    away = pairs.away / np.sqrt(max(np.median(square), _TINY))
    phi = _random_features(rng, width, pairs.true.shape[1], away.shape[1])
    true, false = phi(pairs.true, away), phi(pairs.false, away)
    scores_at = phi(pairs.here, np.zeros((len(pairs.here), away.shape[1])))
    root = np.sqrt(weights)[:, None]
    gram = (root * true).T @ (root * true) + (root * false).T @ (root * false)
    gram += _RIDGE * np.trace(gram) / width * np.eye(width)
    difference = weights[:, None] * (true - false)
    # A swap within a pair changes the sign of its difference, and nothing of the Gram matrix: so
    # one factorisation serves all classifiers.
    signs = np.concatenate(
        [np.ones((1, len(weights))), rng.choice([-1.0, 1.0], size=(flips, len(weights)))]
    )
    scores = scores_at @ np.linalg.solve(gram, difference.T @ signs.T)  # [draws, 1 + flips]
    return np.mean(scores**2, axis=0)


def _whitening(
    draws: Float[np.ndarray, "n l dim"], angles: Bool[np.ndarray, "dim"]
) -> Callable[[Float[np.ndarray, "n dim"]], Float[np.ndarray, "n dim"]]:
    """u = (z - mean) / sd by the draws at each x; of angles the way from their mean direction."""
    around = np.where(
        angles,
        np.arctan2(np.sin(draws).mean(axis=1), np.cos(draws).mean(axis=1)),
        draws.mean(axis=1),
    )

    def centred(
        z: Float[np.ndarray, "*batch dim"], around: Float[np.ndarray, "*batch1 dim"]
    ) -> Float[np.ndarray, "*batch dim"]:
        return np.where(angles, np.mod(z - around + np.pi, 2 * np.pi) - np.pi, z - around)

    sd = np.sqrt(np.mean(centred(draws, around[:, None]) ** 2, axis=1)) + _TINY
    return lambda z: np.clip(centred(z, around) / sd, -_CLIP, _CLIP)


def _random_features(rng: np.random.Generator, width: int, dim: int, p: int) -> RandomFeatures:
    """Cosines of random directions, of several scales in z.

    x counts as one direction of the same weight.
    """
    scales = rng.choice(_WIDTHS, size=width)
    in_z = rng.standard_normal((dim, width)) * scales
    in_x = rng.standard_normal((p, width)) / np.sqrt(p)
    phase = rng.uniform(0, 2 * np.pi, width)
    return lambda z, x: np.cos(z @ in_z + x @ in_x + phase)


__all__ = ["local_c2st", "simulable"]
