"""Is q right at one data set?

Could the model have produced it, and can a classifier tell q from the posterior there?
"""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from .._numerics import host_rng, key_words, x64
from .._types import PyTree
from ..certify.finding import Finding, Verdict
from ..certify.simulations import features, posteriors, simulations

_ALPHA = 0.01
_DRAWS_FOR_SCALE = 50
_SOURCE = "docs/calibration.md"


def simulable(q: Any, target: Any, x: PyTree, key: Any = 0, *, n: int = 1000) -> Finding:
    """Could the model have produced x? Its distance to simulated data against the distances among
    these.

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
    verdict = Verdict.PASS if p > 0.02 else Verdict.CAUTION if ratio < 3 else Verdict.FAIL
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
    detail = {"p": p, "outside": outside}
    return Finding("simulable", ratio, np.nan, None, verdict, why, _SOURCE, detail=detail)


def _nearest(points: np.ndarray, reference: np.ndarray, k: int = 10) -> np.ndarray:
    square = (
        np.sum(points**2, axis=1)[:, None] + np.sum(reference**2, axis=1) - 2 * points @ reference.T
    )
    return np.sqrt(
        np.maximum(np.partition(square, min(k, square.shape[1] - 1), axis=1)[:, :k], 0.0)
    ).mean(axis=1)


def _outside(scaling: Any, x: PyTree) -> int:
    """How many numbers of x lie outside the range of the pilot simulations."""
    parts = zip(
        *(jax.tree.leaves(tree) for tree in (x, scaling.x_low, scaling.x_high)), strict=True
    )
    return sum(
        int(np.sum((np.asarray(v) < low) | (np.asarray(v) > high))) for v, low, high in parts
    )


def local_c2st(
    q: Any,
    target: Any,
    x: PyTree,
    key: Any = 0,
    *,
    n: int = 2000,
    width: int = 300,
    flips: int = 200,
) -> Finding:
    """Can a classifier tell q's draws from the posterior's, near this x? A local classifier
    two-sample test.

    A least-squares classifier on random cosine features of (z, x) is trained to tell simulated
    pairs (z_i, x_i) from (z_i', x_i), z_i' ~ q(. | x_i). Its mean squared score at draws of q(. |
    x) is the statistic; swapping z_i and z_i' within pairs, which changes nothing where q is right,
    gives the null distribution. Least squares in place of a network makes all `flips` null
    classifiers one matrix product.

    Source: Linhart, Gramfort & Rodrigues 2023, algorithm 1 (L-C2ST), with the classifier and the
    null changed as above.
    """
    with x64():
        made = posteriors(q, target, key, n, _DRAWS_FOR_SCALE + 1)
        z_here = np.asarray(q.at(x).sample(key_words(key)[-1] + 2, shape=(1000,)))
    rows, at = (
        features(q, made.x),
        features(q, jax.tree.map(lambda leaf: np.asarray(leaf)[None], x)),
    )
    # draws whitened by q at their own x: what is wrong with q is then seen apart from how z depends
    # on x
    angles, rng = np.array(target.circular), host_rng(key, "c2st")
    whiten = _whitening(made.draws[:, 1:], angles)
    true, false = whiten(made.z), whiten(made.draws[:, 0])
    here = _whitening(z_here[None], angles)(z_here)
    # the nearer a simulation is to x, the more it says about q there
    square = np.sum((rows - at) ** 2, axis=1)
    weights = np.exp(-0.5 * square / max(np.quantile(square, 0.2), 1e-12))
    phi = _random_features(rng, width, made.z.shape[1], rows.shape[1])
    scale = np.sqrt(max(np.median(square), 1e-12))
    true, false = phi(true, (rows - at) / scale), phi(false, (rows - at) / scale)
    scores_at = phi(here, np.zeros((len(here), rows.shape[1])))
    root = np.sqrt(weights)[:, None]
    gram = (root * true).T @ (root * true) + (root * false).T @ (root * false)
    gram += 1e-3 * np.trace(gram) / width * np.eye(width)
    difference = weights[:, None] * (true - false)
    signs = np.concatenate(
        [np.ones((1, len(weights))), rng.choice([-1.0, 1.0], size=(flips, len(weights)))]
    )
    scores = scores_at @ np.linalg.solve(gram, difference.T @ signs.T)  # [draws, 1 + flips]
    statistics = np.mean(scores**2, axis=0)
    p = float(np.mean(statistics >= statistics[0]))
    ratio = float(statistics[0] / np.median(statistics[1:]))
    verdict = Verdict.PASS if p >= _ALPHA else Verdict.CAUTION if ratio < 20 else Verdict.FAIL
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
        detail={"p": p},
    )


def _whitening(draws: np.ndarray, angles: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """u = (z - mean) / sd by the draws `[N, L, d]` at each x.

    Of angles the way from their mean direction.
    """
    around = np.where(
        angles,
        np.arctan2(np.sin(draws).mean(axis=1), np.cos(draws).mean(axis=1)),
        draws.mean(axis=1),
    )

    def centred(z, around):
        return np.where(angles, np.mod(z - around + np.pi, 2 * np.pi) - np.pi, z - around)

    sd = np.sqrt(np.mean(centred(draws, around[:, None]) ** 2, axis=1)) + 1e-12
    return lambda z: np.clip(centred(z, around) / sd, -10.0, 10.0)


def _random_features(
    rng: np.random.Generator, width: int, dim: int, p: int
) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """Cosines of random directions, of several scales in z.

    X counts as one direction of the same weight.
    """
    scales = rng.choice([0.5, 1.0, 2.0], size=width)
    in_z = rng.standard_normal((dim, width)) * scales
    in_x = rng.standard_normal((p, width)) / np.sqrt(p)
    phase = rng.uniform(0, 2 * np.pi, width)
    return lambda z, x: np.cos(z @ in_z + x @ in_x + phase)


__all__ = ["local_c2st", "simulable"]
