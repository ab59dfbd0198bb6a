"""Has training reached the global optimum? An answer from fresh simulations alone.

With a loss l(eta, z) that is convex in eta = f(x), and r_i its gradient at a fresh draw (z_i, x_i),
E[r | x] = g(x) is the functional gradient of the expected loss L. It vanishes for (almost) all x
exactly at the global optimum over functions. So

    U_K = mean over i != j of r_i' K(x_i, x_j) r_j

estimates the squared size of g in the kernel K: -dL/dt under gradient flow for the network's own
tangent kernel, and for a Gaussian kernel zero *only* at the optimum. Under E[r | x] = 0 the signs
of the r_i can be flipped, which gives p-values. And for any other function h, by convexity, L(f) -
L(h) <= E <r, f - h>: two trained networks bound each other's gap, and so does a correction of f
that is found by regression (improvement.py).

Source: this project (docs/forward-kl.md); the flow is that of McNamara, Loper & Regier 2024; U is a
kernel conditional-moment test (Muandet, Jitkrittum & Kuebler 2020).
"""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from .._numerics import host_rng, to_device, x64
from .._types import Array, Estimate, Key, PyTree, Scalar
from ..certify.finding import About, Finding, FindingDetail, Verdict
from ..certify.simulations import Amortised, Simulated, features, simulations
from ..certify.standards import STANDARDS, Standards
from ..families.conditional import Conditional, draws_at, log_probs_at
from ..families.head import AbstractHead
from ..targets.base import Simulator
from .improvement import Whitened, average, cast, improvement, outputs, squared_distances, whitened

_FLIPS = 200  # of signs: p-values down to 0.005
_CHUNK = 64  # draws whose gradients in all weights are held at once
_WIDTHS = (0.1, 0.3, 1.0)  # of the Gaussian kernels, in median distances
_WAY_OUT = "Train on: tb.fit(target, fit.q), with a wider network or more simulations."
SOURCE = "docs/forward-kl.md, The certificate"


@dataclasses.dataclass(frozen=True)
class Stationarity(FindingDetail):
    """A test of E[r | x] = 0 in one kernel.

    Attributes:
        kernel: its name.
        statistic: U.
        p_value: by flips of signs.
    """

    kernel: str
    statistic: float
    p_value: float


@dataclasses.dataclass(frozen=True)
class GlobalOptimumDetail(FindingDetail):
    """The tests of E[r | x] = 0 in both kernels, and what the best correction gains, nats."""

    gaussian: Stationarity
    tangent: Stationarity
    gain: Estimate


@dataclasses.dataclass(frozen=True)
class SeedsDetail(FindingDetail):
    """Convex bounds against the best seed (where there are any), and losses, nats."""

    bounds: tuple[float, ...]
    losses: tuple[float, ...]


def gaussian_kernel_test(
    q: Conditional, made: Simulated, key: Key = 0, seen: Whitened | None = None
) -> Stationarity:
    """U of whitened residuals, with a sum of Gaussian kernels of three widths on standardised x.

    Such a kernel sees every departure, if there are draws enough. `seen`: `whitened(q, made, key)`,
    where it is known already.
    """
    w = (whitened(q, made, key) if seen is None else seen).w
    gram = gaussian_kernel(features(q, made.x)) * (w @ w.T)
    signs = _signs(len(w), key)
    diagonal, pairs = np.trace(gram), len(w) * (len(w) - 1)
    null = (np.einsum("fi,fi->f", signs @ gram, signs) - diagonal) / pairs
    return _tested("Gaussian", (gram.sum() - diagonal) / pairs, null)


def tangent_kernel_test(q: Conditional, made: Simulated, key: Key = 0) -> Stationarity:
    """U with the tangent kernel K = J J': how fast gradient flow would still lower the loss.

    One vector-Jacobian product per draw, v_i = J(x_i)' r_i, and sums of +-v_i: no kernel matrix is
    ever built.
    """
    with x64():
        z, x = cast(q.dtype, made.z, made.x)
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
def _flipped_sums(
    q: Conditional, z: Float[Array, "n dim"], x: PyTree, signs: Float[Array, "flips n"]
) -> tuple[Float[Array, "flips p"], Float[Array, ""]]:
    """Sums over the rows of signs times v, and the sum of |v|^2."""
    weights, static = eqx.partition(q.encoder, eqx.is_inexact_array)

    def one(z: Float[Array, "dim"], x: PyTree) -> Float[Array, "p"]:
        x = q.scaling.standardise(x)
        eta, pull_back = jax.vjp(lambda w: eqx.combine(w, static)(x), weights)
        (v,) = pull_back(q.head.residual(eta, q._standard(z)))
        return jnp.concatenate([leaf.reshape(-1) for leaf in jax.tree.leaves(v)])

    v = jax.vmap(one)(z, x)
    return signs @ v, jnp.sum(v**2)


def convex_bound(f: Conditional, h: Conditional, made: Simulated) -> tuple[Estimate, Estimate]:
    """E <r, f - h> and L(f) - L(h), nats: for convex heads the first is at least the second.

    Raises:
        ValueError: the networks have heads of different kinds, or the head is not convex.
    """
    if type(f.head) is not type(h.head) or f.head.size != h.head.size:
        raise ValueError("convex_bound: the two networks must have the same head.")
    if not f.head.convex:
        raise ValueError(
            f"convex_bound: {type(f.head).__name__} is not convex in what the network returns;"
            " there is no bound."
        )
    eta, r, loss = outputs(f, made)
    other, _, other_loss = outputs(h, made)
    return average(np.sum(r * (eta - other), axis=1)), average(loss - other_loss)


def gaussian_kernel(x: Float[np.ndarray, "n p"]) -> Float[np.ndarray, "n n"]:
    """The sum over widths w of exp(-|x_i - x_j|^2 / (2 w^2 m^2)) / c_w, m the median distance.

    A wide kernel sees smooth departures best, a narrow one rough ones; c_w, the size of the kernel
    off its diagonal, gives them the same spread where there is none.
    """
    square = squared_distances(x, x)
    middle = max(float(np.median(square[np.triu_indices(len(x), 1)])), 1e-12)
    total = np.zeros_like(square)
    for width in _WIDTHS:
        kernel = np.exp(-0.5 * square / (middle * width**2))
        total += kernel / np.sqrt(max(float(np.mean(kernel**2)) - 1 / len(x), 1e-12))
    return total


def global_optimum(
    q: Amortised,
    target: Simulator,
    key: Key,
    *,
    n: int = 2000,
    standards: Standards = STANDARDS,
) -> Finding:
    """How many nats could another function still gain, and is E[r | x] = 0 to within noise?

    Judged is the largest of the bounds E <r, f - h> with two of its standard errors added, over the
    other seeds and over a correction found by regression on the draws. What neither another seed
    nor the regression sees is not bounded.
    """
    network = q.members[0]
    made = simulations(target, key, n)
    seen, convex = whitened(network, made, key), bool(network.head.convex)
    tests = [
        gaussian_kernel_test(network, made, key, seen),
        tangent_kernel_test(network, made, key),
    ]
    better = improvement(network, made, key, seen)
    # Of a head that is not convex another seed bounds nothing.
    others = [convex_bound(network, other, made)[0] for other in q.members[1:]] if convex else []
    bound = max([better.bound, *others], key=lambda b: b.value + standards.errors * b.stderr)
    verdict = Verdict.PASS
    if bound.value + standards.errors * bound.stderr > standards.gap:
        verdict = (
            Verdict.FAIL
            if better.gain.value - standards.errors * better.gain.stderr > standards.gap_fail
            else Verdict.CAUTION
        )
    detail = GlobalOptimumDetail(tests[0], tests[1], better.gain)
    why = _why(network.head, verdict, tests, better.gain, bound, standards)
    return Finding(
        "global optimum",
        bound.value,
        bound.stderr,
        standards.gap,
        verdict,
        why,
        SOURCE,
        detail=detail,
        about=About.SEARCH,
    )


def _why(
    head: AbstractHead,
    verdict: Verdict,
    tests: list[Stationarity],
    gain: Estimate,
    bound: Estimate,
    standards: Standards,
) -> str:
    p = " and ".join(f"{t.p_value:.2g} ({t.kernel} kernel)" for t in tests)
    what, most = "global optimum of the expected forward KL", "by convexity at most"
    if not head.convex:
        kind = type(head).__name__
        what = (
            f"stationary point of the expected forward KL ({kind} is not convex: another may be"
            " better)"
        )
        most = "to first order"
    numbers = f"the best correction found gains {gain.value:.3f} ± {gain.stderr:.3f} nats"
    numbers += f", {most} {bound.value:.3f} ± {bound.stderr:.3f}; p-values {p}"
    if verdict is Verdict.PASS:
        seen = (
            "A significant but small departure"
            if min(t.p_value for t in tests) < standards.significant
            else "No departure"
        )
        return f"{seen} from the {what}: {numbers}."
    return f"Training has not reached the {what}: {numbers}. {_WAY_OUT}"


def seeds_agree(
    q: Amortised,
    target: Simulator,
    key: Key,
    *,
    n: int = 500,
    standards: Standards = STANDARDS,
) -> Finding | None:
    """Whether networks from several starts say the same; None for one network.

    By their symmetrised KL on fresh data, and by convex bounds.
    """
    members = q.members
    if len(members) < 2:
        return None
    made = simulations(target, key, n)
    losses = [outputs(m, made)[2] for m in members]
    best = int(np.argmin([loss.mean() for loss in losses]))
    bounds = (
        [convex_bound(m, members[best], made)[0] for m in members] if members[0].head.convex else []
    )
    spread = max(
        _symmetric_kl(members[best], m, made, key).value for m in members if m is not members[best]
    )
    threshold = standards.seeds
    verdict = (
        Verdict.PASS
        if spread < threshold
        else Verdict.CAUTION
        if spread < standards.seeds_fail
        else Verdict.FAIL
    )
    differ = max(float(loss.mean() - losses[best].mean()) for loss in losses)
    why = (
        f"{len(members)} networks from their own starts differ by at most {spread:.3f} nats"
        f" (symmetrised KL, average over data) and {differ:.3f} nats in expected loss."
    )
    detail = SeedsDetail(
        tuple(b.value for b in bounds), tuple(float(loss.mean()) for loss in losses)
    )
    return Finding(
        "seeds",
        spread,
        np.nan,
        threshold,
        verdict,
        why,
        SOURCE,
        detail=detail,
        about=About.SEARCH,
    )


def _symmetric_kl(a: Conditional, b: Conditional, made: Simulated, key: Key) -> Estimate:
    """KL(a || b) + KL(b || a) averaged over the data, from one draw of each at each x."""
    with x64():
        terms = []
        for p, other in ((a, b), (b, a)):
            z = draws_at(p, made.x, key, 1)[:, 0]
            terms.append(log_probs_at(p, z, made.x) - log_probs_at(other, z, made.x))
    return average(np.asarray(terms[0] + terms[1], np.float64))


def _signs(n: int, key: Key) -> Float[np.ndarray, "flips n"]:
    return host_rng(key, "sign flips").choice([-1.0, 1.0], size=(_FLIPS, n))


def _tested(kernel: str, statistic: Scalar, null: Float[np.ndarray, "flips"]) -> Stationarity:
    p = (1 + np.sum(null >= statistic)) / (1 + len(null))
    return Stationarity(kernel, float(statistic), float(p))


__all__ = [
    "Stationarity",
    "convex_bound",
    "gaussian_kernel",
    "gaussian_kernel_test",
    "global_optimum",
    "seeds_agree",
    "tangent_kernel_test",
]
