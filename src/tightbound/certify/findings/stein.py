"""Kernelised Stein discrepancy: whether q's draws look like the target to its scores.

It takes no importance weights. Weights fail together in many dimensions; scores do not. The
discrepancy is the largest expectation, over functions f of a ball, of the Stein operator
s_p' f + div f, which is zero for draws of p and for them alone.
"""

import dataclasses

import numpy as np
from jaxtyping import Float

from ..._numerics import host_rng
from ..draws import Whitening
from ..finding import Case, Finding, FindingDetail, Verdict, register
from ..standards import Standards

_MOST_NUMBERS = 2_000_000  # draws x dim: fewer draws in many dimensions
_FEWEST = 50  # draws without which the bootstrap has no null distribution to speak of


@dataclasses.dataclass(frozen=True)
class SteinDetail(FindingDetail):
    """`p_value`: of no discrepancy at all."""

    p_value: float


@register("stein", place=100)
def stein(case: Case) -> Finding:
    """The Stein discrepancy of q's draws, in coordinates whitened by them, and its p-value.

    The kernel is (1 + |u - v|^2 / d)^(-1/2). value = sqrt(U), U the unbiased mean over pairs i != j
    of the Stein kernel; a mean that is a sds off gives about .8 a. The null, q = p, by the wild
    bootstrap: U with random signs on the draws, 500 times. No q is exactly p, and with enough draws
    every p-value is small: the verdict asks for a discrepancy that is also large. Blind to a mode
    where q has no draws. Uses 500 of the draws and their scores, and no evaluation of its own.

    Source: Liu, Lee & Jordan 2016, eq. 8 and section 4; Gorham & Mackey 2017, theorem 8 (the
    kernel).
    """
    draws, effort = case.sample, case.effort
    good = np.flatnonzero(draws.finite[: len(draws.z) // 2])  # the second half mirrors the first
    count = min(effort.stein_draws, len(good), max(_FEWEST, _MOST_NUMBERS // draws.z.shape[1]))
    if count < _FEWEST:
        why = "Too few finite draws for a Stein discrepancy."
        return _finding(0.0, np.nan, 1.0, why, case.standards)
    white, some = Whitening.of(draws.z[draws.finite]), good[:count]
    scores = (
        draws.scores[some] * white.root if white.root.ndim == 1 else draws.scores[some] @ white.root
    )
    kernel = stein_kernel(white.to_u(draws.z[some]), scores)
    np.fill_diagonal(kernel, 0.0)
    pairs = count * (count - 1)
    statistic = float(kernel.sum() / pairs)
    signs = host_rng(case.key, "stein").choice([-1.0, 1.0], size=(effort.stein_replicates, count))
    null = np.einsum("bi,bi->b", signs @ kernel, signs) / pairs
    p_value = float((1 + np.sum(null >= statistic)) / (1 + len(null)))
    value = float(np.sqrt(max(statistic, 0.0)))
    # Of U, where it is not degenerate
    spread = 2.0 * kernel.sum(axis=1).std() / (count - 1) / np.sqrt(count)
    stderr = float(spread / (2.0 * value)) if value > 0 else np.nan
    return _finding(value, stderr, p_value, "", case.standards)


def stein_kernel(
    u: Float[np.ndarray, "n dim"], scores: Float[np.ndarray, "n dim"]
) -> Float[np.ndarray, "n n"]:
    """The Stein kernel of points with scores, for k(u, v) = (1 + |u - v|^2 / d)^(-1/2).

    s(u)'s(v) k + s(u)' grad_v k + s(v)' grad_u k + tr grad_u grad_v k.
    """
    dim = u.shape[1]
    squares = np.sum(u**2, axis=1)
    apart = np.maximum(squares[:, None] + squares[None, :] - 2.0 * u @ u.T, 0.0)
    base = 1.0 + apart / dim
    own = np.sum(scores * u, axis=1)
    pulled = own[:, None] - scores @ u.T  # s(u_i)'(u_i - u_j)
    crossed = pulled + pulled.T  # grad_v k = (u - v) base^(-3/2) / d, grad_u k = - that
    trace = base**-1.5 - 3.0 * apart / dim**2 * base**-2.5
    return scores @ scores.T * base**-0.5 + crossed / dim * base**-1.5 + trace


def _finding(
    value: float, stderr: float, p_value: float, why: str, standards: Standards
) -> Finding:
    beyond = value - standards.errors * np.nan_to_num(stderr) > standards.stein
    large = p_value < standards.significant and beyond
    said = (
        f"Stein discrepancy of q's draws {value:.2g} (p-value of no discrepancy at all:"
        f" {p_value:.2g})"
    )
    if not why:
        why = f"{said}: the scores of the target contradict q." if large else f"{said}: small."
    return Finding(
        "stein",
        value,
        stderr,
        standards.stein,
        Verdict.CAUTION if large else Verdict.PASS,
        why,
        "Liu, Lee & Jordan 2016, eq. 8; Gorham & Mackey 2017",
        detail=SteinDetail(p_value),
    )


__all__ = ["SteinDetail", "stein", "stein_kernel"]
