"""Has training reached the global optimum? A certificate for amortised fits, from fresh simulations alone.

With a loss l(eta, z) that is convex in eta = f(x), and r_i its gradient at a fresh draw (z_i, x_i), E[r | x] = g(x) is the
functional gradient of the expected loss L. It vanishes for (almost) all x exactly at the global optimum over functions. So

    U_K = mean over i != j of r_i' K(x_i, x_j) r_j

estimates the squared size of g in the kernel K: -dL/dt under gradient flow for the network's own tangent kernel, and for a
Gaussian kernel zero *only* at the optimum. Under E[r | x] = 0 the signs of the r_i can be flipped, which gives p-values.
And for any other function h, by convexity, L(f) - L(h) <= E <r, f - h>: two trained networks bound each other's gap.

Source: this project (docs/forward-kl.md); the flow is that of McNamara, Loper & Regier 2024; U is a kernel
conditional-moment test (Muandet, Jitkrittum & Kuebler 2020).
"""

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from .._numerics import host_rng, to_device, x64
from .._types import Estimate
from .base import Finding, Verdict
from .simulations import Simulated, features, simulations

_FLIPS = 200
_CHUNK = 64
_ALPHA = 0.01
_GAIN = 0.05  # nats that a better function may still gain
_LARGE_GAIN = 0.5
_STEPS = (0.0, 0.1, 0.2, 0.4, 0.7, 1.0)
SOURCE = "docs/forward-kl.md, The certificate"


@dataclasses.dataclass(frozen=True)
class Stationarity:
    """A test of E[r | x] = 0 in one kernel: the statistic, its p-value by sign flips, and its spread under the null."""

    kernel: str
    statistic: float
    p_value: float
    null_sd: float


@eqx.filter_jit
def _outputs_and_residuals(q: Any, z: Any, x: Any) -> Any:
    def one(z, x):
        eta, u = q.eta(x), q._standard(z)
        return eta, q.head.residual(eta, u), q.head.loss(eta, u)

    return jax.vmap(one)(z, x)


def outputs(q: Any, made: Simulated) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """At the draws `made`: f(x) `[n, k]`, residuals r `[n, k]`, losses `[n]` (nats, in standardised z)."""
    with x64():
        found = _outputs_and_residuals(to_device(q, q.dtype), *_as(q.dtype, made.z, made.x))
    eta, r, loss = (np.asarray(a, np.float64) for a in found)
    return eta, r, loss


def gaussian_kernel_test(q: Any, made: Simulated, key: Any = 0) -> Stationarity:
    """U with a Gaussian kernel on standardised x, its width the median distance: blind to nothing."""
    _, r, _ = outputs(q, made)
    r = r / _scale(r)
    gram = gaussian_kernel(features(q, made.x)) * (r @ r.T)
    signs = _signs(len(r), key)
    diagonal, pairs = np.trace(gram), len(r) * (len(r) - 1)
    null = (np.einsum("fi,fi->f", signs @ gram, signs) - diagonal) / pairs
    return _tested("Gaussian", (gram.sum() - diagonal) / pairs, null)


def tangent_kernel_test(q: Any, made: Simulated, key: Any = 0) -> Stationarity:
    """U with the network's own tangent kernel K = J J': how fast gradient flow would still lower the loss.

    One vector-Jacobian product per draw, v_i = J(x_i)' r_i, and sums of +-v_i: no kernel matrix is ever built.
    """
    with x64():
        z, x = _as(q.dtype, made.z, made.x)
        network, n = to_device(q, q.dtype), len(made)
        signs = np.concatenate([np.ones((1, n)), _signs(n, key)]).astype(q.dtype)
        total, diagonal = 0.0, 0.0
        for start in range(0, n, _CHUNK):
            rows = slice(start, min(start + _CHUNK, n))
            z_cut, x_cut = jax.tree.map(lambda leaf, rows=rows: leaf[rows], (z, x))
            sums, squares = _flipped_sums(network, z_cut, x_cut, jnp.asarray(signs[:, rows]))
            total, diagonal = total + np.asarray(sums, np.float64), diagonal + float(squares)
    values = (np.sum(np.asarray(total) ** 2, axis=1) - diagonal) / (n * (n - 1))
    return _tested("tangent", values[0], values[1:])


@eqx.filter_jit
def _flipped_sums(q: Any, z: Any, x: Any, signs: Any) -> Any:
    """Sums over the rows of signs times v `[1 + flips, P]`, and the sum of |v|^2."""
    weights, static = eqx.partition(q.encoder, eqx.is_inexact_array)

    def one(z, x):
        x = q.scaling.standardise(x)
        eta, pull_back = jax.vjp(lambda w: eqx.combine(w, static)(x), weights)
        (v,) = pull_back(q.head.residual(eta, q._standard(z)))
        return jnp.concatenate([leaf.reshape(-1) for leaf in jax.tree.leaves(v)])

    v = jax.vmap(one)(z, x)
    return signs @ v, jnp.sum(v**2)


def convex_bound(f: Any, h: Any, made: Simulated) -> tuple[Estimate, Estimate]:
    """E <r, f - h>, which bounds L(f) - L(h) from above for convex heads, and that difference itself; nats.

    Raises:
        ValueError: the networks have heads of different kinds, or the head is not convex.
    """
    if type(f.head) is not type(h.head) or f.head.size != h.head.size:
        raise ValueError("convex_bound: the two networks must have the same head.")
    if not f.head.convex:
        raise ValueError(
            f"convex_bound: {type(f.head).__name__} is not convex in what the network returns; there is no bound."
        )
    eta, r, loss = outputs(f, made)
    other, _, other_loss = outputs(h, made)
    return _mean(np.sum(r * (eta - other), axis=1)), _mean(loss - other_loss)


def attainable_gain(q: Any, made: Simulated) -> Estimate:
    """By how much a correction of f lowers the expected loss, nats: a lower bound on the gap, up to its error.

    A kernel regression of r on x is trained on half of the draws; the best step along it, and what it gains, are found on
    the other half by two-fold cross-validation, so that noise gains nothing.
    """
    eta, r, loss = outputs(q, made)
    kernel, half, scale = gaussian_kernel(features(q, made.x)), len(made) // 2, _scale(r)
    gains, halves = np.zeros(2 * half), (np.arange(half), np.arange(half, 2 * half))
    for fitted, judged in (halves, halves[::-1]):
        found = _ridge(kernel[np.ix_(fitted, fitted)], kernel[np.ix_(judged, fitted)], r[fitted] / scale) * scale
        direction = dict(zip(judged, found * _newton_scale(q, eta, made, fitted), strict=True))

        def losses(rows, step, direction=direction):
            moved = eta[rows] - step * np.stack([direction[i] for i in rows])
            return _losses_at(q, moved, made, rows)

        quarters = np.array_split(judged, 2)  # the step is chosen on one, and judged on the other
        for choose, judge in (quarters, quarters[::-1]):
            best = min(_STEPS, key=lambda step, choose=choose: np.mean(losses(choose, step)))
            gains[judge] = loss[judge] - losses(judge, best)
    return _mean(gains)


def _newton_scale(q: Any, eta: np.ndarray, made: Simulated, rows: np.ndarray) -> np.ndarray:
    """1 / the mean curvature of the loss in each output: turns a gradient into a step of about the right length."""
    with x64():
        cut = _as(q.dtype, eta[rows], made.z[rows])
        diagonal = np.asarray(_curvatures(to_device(q, q.dtype), *cut), np.float64).mean(axis=0)
    return 1.0 / np.maximum(diagonal, 1e-3 * max(diagonal.max(), 1e-12))


@eqx.filter_jit
def _curvatures(q: Any, eta: Any, z: Any) -> Any:
    def one(eta, z):
        return jnp.abs(jnp.diagonal(jax.hessian(q.head.loss)(eta, q._standard(z))))

    return jax.vmap(one)(eta, z)


def _losses_at(q: Any, eta: np.ndarray, made: Simulated, rows: np.ndarray) -> np.ndarray:
    with x64():
        return np.asarray(_losses(to_device(q, q.dtype), *_as(q.dtype, eta, made.z[rows])), np.float64)


@eqx.filter_jit
def _losses(q: Any, eta: Any, z: Any) -> Any:
    return jax.vmap(lambda e, z: q.head.loss(e, q._standard(z)))(eta, z)


def gaussian_kernel(x: np.ndarray) -> np.ndarray:
    """exp(-|x_i - x_j|^2 / (2 m^2)) with m the median distance, `[n, n]`."""
    square = np.maximum(np.sum(x**2, axis=1)[:, None] + np.sum(x**2, axis=1)[None, :] - 2 * x @ x.T, 0.0)
    middle = np.median(square[np.triu_indices(len(x), 1)])
    return np.exp(-0.5 * square / max(middle, 1e-12))


def _ridge(kernel: np.ndarray, across: np.ndarray, r: np.ndarray) -> np.ndarray:
    n = len(kernel)
    return across @ np.linalg.solve(kernel + 0.02 * n * np.eye(n), r)


def global_optimum(q: Any, target: Any, key: Any, *, n: int = 1000) -> Finding:
    """The finding: is E[r | x] = 0 to within noise, and if not, how many nats does a correction gain?"""
    network = q.members[0]
    made = simulations(target, key, n)
    tests = [gaussian_kernel_test(network, made, key), tangent_kernel_test(network, made, key)]
    gain = attainable_gain(network, made)
    convex = bool(network.head.convex)
    significant = min(t.p_value for t in tests) < _ALPHA
    if gain.value - 2 * gain.stderr > _LARGE_GAIN:
        verdict = Verdict.FAIL
    elif gain.value > _GAIN and significant:
        verdict = Verdict.CAUTION
    else:
        verdict = Verdict.PASS
    p = " and ".join(f"{t.p_value:.2g} ({t.kernel} kernel)" for t in tests)
    what = (
        "global optimum of the expected forward KL"
        if convex
        else f"stationary point of the expected forward KL ({type(network.head).__name__} is not convex: another may be "
        "better)"
    )
    numbers = f"p-values {p}, and a correction gains {gain.value:.3f} ± {gain.stderr:.3f} nats"
    if verdict is Verdict.PASS:
        seen = "A significant but small departure" if significant else "No departure"
        why = f"{seen} from the {what}: {numbers}."
    else:
        way_out = "Train on: tb.fit(target, fit.q), with a wider network or more simulations."
        why = f"Training has not reached the {what}: {numbers}. {way_out}"
    detail = {t.kernel: dataclasses.asdict(t) for t in tests}
    return Finding("global optimum", gain.value, gain.stderr, _GAIN, verdict, why, SOURCE, detail=detail)


def seeds_agree(q: Any, target: Any, key: Any, *, n: int = 500) -> Finding | None:
    """Whether networks from several starts say the same: symmetrised KL on fresh data, convex bounds; None for one."""
    members = q.members
    if len(members) < 2:
        return None
    made = simulations(target, key, n)
    losses = [outputs(m, made)[2] for m in members]
    best = int(np.argmin([loss.mean() for loss in losses]))
    bounds = [convex_bound(m, members[best], made)[0] for m in members] if members[0].head.convex else []
    spread = max(_symmetric_kl(members[best], m, made, key).value for m in members if m is not members[best])
    threshold = 0.05
    verdict = Verdict.PASS if spread < threshold else Verdict.CAUTION if spread < 10 * threshold else Verdict.FAIL
    differ = max(float(loss.mean() - losses[best].mean()) for loss in losses)
    why = (
        f"{len(members)} networks from their own starts differ by at most {spread:.3f} nats (symmetrised KL, average over "
        f"data) and {differ:.3f} nats in expected loss."
    )
    detail = {"bounds": [b.value for b in bounds], "losses": [float(loss.mean()) for loss in losses]}
    return Finding("seeds", spread, np.nan, threshold, verdict, why, SOURCE, detail=detail)


def _symmetric_kl(a: Any, b: Any, made: Simulated, key: Any) -> Estimate:
    """KL(a || b) + KL(b || a) averaged over the data, from one draw of each at each x."""
    from ..families.conditional import draws_at, log_probs_at

    with x64():
        terms = []
        for p, other in ((a, b), (b, a)):
            z = draws_at(p, made.x, key, 1)[:, 0]
            terms.append(log_probs_at(p, z, made.x) - log_probs_at(other, z, made.x))
    return _mean(np.asarray(terms[0] + terms[1], np.float64))


def _scale(r: np.ndarray) -> np.ndarray:
    return np.maximum(np.sqrt(np.mean(r**2, axis=0)), 1e-12)


def _signs(n: int, key: Any) -> np.ndarray:
    return host_rng(key, "sign flips").choice([-1.0, 1.0], size=(_FLIPS, n))


def _tested(kernel: str, statistic: float, null: np.ndarray) -> Stationarity:
    p = (1 + np.sum(null >= statistic)) / (1 + len(null))
    return Stationarity(kernel, float(statistic), float(p), float(null.std()))


def _mean(values: np.ndarray) -> Estimate:
    return Estimate(float(values.mean()), float(values.std() / np.sqrt(len(values))))


def _as(dtype: Any, *trees: Any) -> Any:
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), trees)


__all__ = [
    "Stationarity",
    "attainable_gain",
    "convex_bound",
    "gaussian_kernel",
    "gaussian_kernel_test",
    "global_optimum",
    "outputs",
    "seeds_agree",
    "tangent_kernel_test",
]
