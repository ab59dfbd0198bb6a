"""What L-BFGS believes the covariance of a posterior to be, along a path.

Source: Zhang, Carpenter, Gelman & Vehtari 2022 (Pathfinder), Algorithms 3 and 4.
"""

import dataclasses

import numpy as np
from jaxtyping import Float

from .lbfgs import updated_diagonal

_LEAST_CURVATURE = 1e-12  # s'y relative to y'y: a pair below it would make H infinite
_ROUNDING = 1e-12  # an eigenvalue of H this near to zero cannot be told from it


@dataclasses.dataclass(frozen=True)
class InverseHessian:
    """H = A^(1/2) (I + Q diag(lam) Q') A^(1/2), A = diag(alpha); nothing d x d.

    Attributes:
        alpha: positive.
        basis: Q, orthonormal columns.
        excess: lam, each above -1.
    """

    alpha: Float[np.ndarray, "dim"]
    basis: Float[np.ndarray, "dim r"]
    excess: Float[np.ndarray, "r"]

    @classmethod
    def of(
        cls,
        alpha: Float[np.ndarray, "dim"],
        s: Float[np.ndarray, "dim pairs"],
        y: Float[np.ndarray, "dim pairs"],
    ) -> "InverseHessian | None":
        """From pairs of moves and changes of the negative gradient, the oldest first.

        None if not positive.

        Source: Byrd, Nocedal & Schnabel 1994, eq. 3.1; Zhang et al. 2022, Algorithms 3 and 4.
        """
        if s.shape[1] == 0:
            return cls(alpha, np.zeros((len(alpha), 0)), np.zeros(0))
        products = s.T @ y
        r_inverse = np.linalg.inv(np.triu(products))
        scaled = alpha[:, None] * y
        corner = r_inverse.T @ (np.diag(np.diagonal(products)) + y.T @ scaled) @ r_inverse
        middle = np.block([[corner, -r_inverse.T], [-r_inverse, np.zeros_like(products)]])
        # In the basis of all moves and changes, H - A is a small matrix: its eigenvectors there are
        # those of H.
        basis, triangle = np.linalg.qr(
            np.concatenate([s, scaled], axis=1) / np.sqrt(alpha)[:, None]
        )
        excess, vectors = np.linalg.eigh(triangle @ middle @ triangle.T)
        if not np.all(np.isfinite(excess)) or excess.min() <= -1.0 + _ROUNDING:
            return None
        return cls(alpha, basis @ vectors, excess)

    def times(self, v: Float[np.ndarray, "dim"]) -> Float[np.ndarray, "dim"]:
        """H v."""
        half = np.sqrt(self.alpha) * v
        return np.sqrt(self.alpha) * (half + self.basis @ (self.excess * (self.basis.T @ half)))

    def displace(self, noise: Float[np.ndarray, "n dim"]) -> Float[np.ndarray, "n dim"]:
        """Standard normals as displacements with covariance H."""
        inner = noise + ((noise @ self.basis) * (np.sqrt(1.0 + self.excess) - 1.0)) @ self.basis.T
        return np.sqrt(self.alpha) * inner

    @property
    def half_log_det(self) -> float:
        """log |H|^(1/2), nats."""
        return float(0.5 * np.log(self.alpha).sum() + 0.5 * np.log1p(self.excess).sum())


def inverse_hessians(
    points: Float[np.ndarray, "iterates dim"],
    gradients: Float[np.ndarray, "iterates dim"],
    memory: int,
) -> list[InverseHessian | None]:
    """The estimate at each iterate of a descent, from the pairs up to it.

    Arguments:
        points: the iterates.
        gradients: of -log p there.
        memory: most pairs behind an estimate.
    """
    alpha, kept, out = np.ones(points.shape[1]), [], []
    for t in range(len(points)):
        if t > 0:
            s, y = points[t] - points[t - 1], gradients[t] - gradients[t - 1]
            if np.all(np.isfinite(y)) and s @ y > _LEAST_CURVATURE * (y @ y):
                new = updated_diagonal(alpha, s, y)
                alpha = np.where(np.isfinite(new) & (new > 0), new, alpha)
                kept = [*kept, (s, y)][-memory:]
        pairs = [np.stack(columns, axis=1) for columns in zip(*kept, strict=True)] or [
            np.zeros((len(alpha), 0))
        ] * 2
        out.append(InverseHessian.of(alpha, pairs[0], pairs[1]))
    return out


__all__ = ["InverseHessian", "inverse_hessians"]
