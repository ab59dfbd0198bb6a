"""The network's tangent kernel: what the theory assumes of it, and how far practice departs."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from .._numerics import to_device, x64
from .._types import Array, PyTree
from ..certify.finding import About, Finding, FindingDetail, Verdict
from ..certify.simulations import features
from ..certify.standards import STANDARDS, Standards
from ..families.conditional import Conditional

_PAIRS = 4  # data sets that are mirrored: enough for the rank to show it
SOURCE = "docs/forward-kl.md, The tangent kernel"


@dataclasses.dataclass(frozen=True)
class TangentKernel:
    """K(x_i, x_j) = J f(x_i) J f(x_j)' on m data sets.

    Attributes:
        gram: as one matrix, the outputs of each x together.
        smallest: its smallest eigenvalue.
        largest: its largest eigenvalue.
        rank: number of eigenvalues above 1e-9 of the largest.
        effective_rank: (sum of eigenvalues)^2 / sum of their squares.
        outputs: k.
    """

    gram: Float[np.ndarray, "mk mk"]
    smallest: float
    largest: float
    rank: int
    effective_rank: float
    outputs: int

    def drift(self, start: "TangentKernel") -> float:
        """|K - K_start| / |K_start| (Frobenius): zero in the lazy regime of the theory."""
        return float(np.linalg.norm(self.gram - start.gram) / np.linalg.norm(start.gram))


@dataclasses.dataclass(frozen=True)
class KernelDetail(FindingDetail):
    """`missing`: eigenvalues that count as zero; `rank`: those that do not."""

    missing: int
    rank: int


def tangent_kernel(network: Conditional, x: PyTree) -> TangentKernel:
    """The tangent kernel of a Conditional's encoder at m data sets (leading axis).

    Cost m k gradients of the network.
    """
    with x64():
        network = to_device(network, network.dtype)
        x = jax.tree.map(lambda leaf: jnp.asarray(leaf, network.dtype), x)
        jacobian = np.asarray(_jacobians(network, x), np.float64)
    k = jacobian.shape[1]
    rows = jacobian.reshape((-1, jacobian.shape[2]))
    gram = rows @ rows.T
    eigenvalues = np.linalg.eigvalsh(gram)
    largest = float(eigenvalues[-1])
    rank = int(np.sum(eigenvalues > STANDARDS.singular * largest))
    effective = float(eigenvalues.sum() ** 2 / np.sum(eigenvalues**2))
    return TangentKernel(gram, float(eigenvalues[0]), largest, rank, effective, k)


@eqx.filter_jit
def _jacobians(network: Conditional, x: PyTree) -> Float[Array, "m k p"]:
    """J f(x) in the encoder's weights."""
    # Only the encoder has weights that gradient flow moves; a head with its own is left out.
    weights, static = eqx.partition(network.encoder, eqx.is_inexact_array)

    def one(x: PyTree) -> Float[Array, "k p"]:
        x = network.scaling.standardise(x)
        rows = jax.jacrev(lambda w: eqx.combine(w, static)(x))(weights)
        return jnp.concatenate(
            [leaf.reshape((leaf.shape[0], -1)) for leaf in jax.tree.leaves(rows)], axis=1
        )

    return jax.vmap(one)(x)


def antipodal(network: Conditional, x: PyTree, standards: Standards = STANDARDS) -> Finding:
    """Whether the kernel can tell standardised x from -x.

    A ReLU network without biases cannot, whatever its width. The kernel is taken on four of the
    data sets, far apart, and their mirror images; eigenvalues of zero among so few are functions
    that gradient flow can never change, so that the theorem's condition of a positive definite
    kernel fails.
    """
    far = _far_apart(features(network, x), _PAIRS)
    with x64():
        mirrored = jax.tree.map(
            lambda leaf, shift: _with_mirror(leaf[far], shift), x, network.scaling.x_shift
        )
    kernel = tangent_kernel(network, mirrored)
    missing = int(np.sum(np.linalg.eigvalsh(kernel.gram) < standards.singular * kernel.largest))
    verdict = Verdict.PASS if missing == 0 else Verdict.CAUTION
    why = (
        "The tangent kernel is positive definite on data sets and their mirror images."
        if missing == 0
        else (
            f"The tangent kernel is singular on data sets and their mirror images: {missing} of"
            f" {len(kernel.gram)} eigenvalues are zero, so gradient flow cannot reach every"
            " function. Append a constant to x or give the network biases; or the network has"
            " fewer weights than there are outputs here."
        )
    )
    ratio = kernel.smallest / kernel.largest
    return Finding(
        "antipodal",
        ratio,
        np.nan,
        standards.singular,
        verdict,
        why,
        SOURCE,
        detail=KernelDetail(missing, kernel.rank),
        about=About.SEARCH,
    )


def _with_mirror(
    x: Float[Array, "m *shape"], shift: Float[Array, "*shape"]
) -> Float[np.ndarray, "both *shape"]:
    """The standardised mirror image -(x - shift) / scale is that of 2 shift - x."""
    x, shift = np.asarray(x, np.float64), np.asarray(shift, np.float64)
    return np.concatenate([x, 2 * shift[None] - x])


def _far_apart(x: Float[np.ndarray, "m p"], count: int) -> list[int]:
    """Indices of rows far from each other, also from their mirror images: farthest first."""
    chosen = [int(np.argmax(np.linalg.norm(x, axis=1)))]
    while len(chosen) < min(count, len(x)):
        away = [
            np.minimum(np.linalg.norm(x - x[i], axis=1), np.linalg.norm(x + x[i], axis=1))
            for i in chosen
        ]
        chosen.append(int(np.argmax(np.min(away, axis=0))))
    return chosen


__all__ = ["TangentKernel", "antipodal", "tangent_kernel"]
